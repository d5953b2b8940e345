"""How far 8-bit weights change the labels of a run's own rows."""

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray.model.bundle import Bundle
from bertray.model.engine import verify_int8
from bertray.model.settings import EngineSettings
from bertray.score.plan import Split
from bertray.score.source import Reading, fault_of, read_block
from bertray.text.columns import as_column

logger = logging.getLogger(__name__)

SAMPLE_ROWS = 256
SAMPLE_TOKENS = 16_384  # of all of them: the sample must not cost what the run costs
BYTES_PER_TOKEN = 4  # few, so that the sample is rather too small
LEAST_AGREEMENT = 0.995


def report_agreement(
    splits: Sequence[Split], *, bundle: Bundle, exact: EngineSettings, reading: Reading
) -> None:
    """Log how many labels of a sample 8 bits leave as they are; a warning if they are few.

    Args:
        splits: those of the run; the first that can be read gives the sample.
        bundle: the model.
        exact: the run's settings, but for float32.
        reading: which columns hold the texts.

    Raises:
        StorageError: the place of the shards cannot be reached.
    """
    blocks = (read_block(split, reading) for split in splits)
    block = next((block for block in blocks if fault_of(block) is None), None)
    if block is None:
        return  # each will be quarantined
    names = [reading.text, *([reading.text_pair] if reading.text_pair else [])]
    columns = sample([as_column(block.column(name)) for name in names], exact)
    agreement = verify_int8(bundle, exact, *columns)
    if agreement is None:
        return
    fine = agreement >= LEAST_AGREEMENT
    logger.log(
        logging.INFO if fine else logging.WARNING,
        "int8 leaves %.1f%% of the %s of %d sampled rows as they are%s",
        100 * agreement,
        "scores (but for a twentieth of their spread)" if bundle.task == "regression" else "labels",
        len(columns[0]),
        "" if fine else "; model.dtype=float32 is exact",
    )


def sample(columns: Sequence[pa.Array], settings: EngineSettings) -> list[pa.Array]:
    """Rows from all over a split, always the same, of so many tokens as may be computed.

    Args:
        columns: the texts, or the texts and their pairs.
        settings: how much is read of each.
    """
    long_text = settings.long_text
    most = settings.max_length * (long_text.max_windows if long_text.long == "window" else 1)
    num_bytes = sum(np.asarray(pc.fill_null(pc.binary_length(column), 0)) for column in columns)
    num_tokens = np.clip(num_bytes // BYTES_PER_TOKEN, 1, most)
    is_whole = np.logical_and.reduce([np.asarray(column.is_valid()) for column in columns])
    rows = np.random.default_rng(0).permutation(np.flatnonzero(is_whole))[:SAMPLE_ROWS]
    rows = rows[: max(int((num_tokens[rows].cumsum() <= SAMPLE_TOKENS).sum()), 1)]
    return [column.take(pa.array(np.sort(rows))) for column in columns]
