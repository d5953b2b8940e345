"""How far 8-bit weights change the labels of a run's own rows."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from bertray.model.bundle import Bundle
from bertray.model.engine import verify_int8
from bertray.model.settings import EngineSettings
from bertray.score.plan import Split
from bertray.score.source import Reading, fault_of, read_block
from bertray.text.long import TRUNCATE

logger = logging.getLogger(__name__)

SAMPLE_ROWS = 256
SAMPLE_TOKENS = 64  # of each row: the sample must not cost what the run costs
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
    rows = block.slice(0, SAMPLE_ROWS)
    exact = replace(exact, max_length=min(exact.max_length, SAMPLE_TOKENS), long_text=TRUNCATE)
    pairs = rows.column(reading.text_pair) if reading.text_pair else None
    agreement = verify_int8(bundle, exact, rows.column(reading.text), pairs)
    fine = agreement >= LEAST_AGREEMENT
    logger.log(
        logging.INFO if fine else logging.WARNING,
        "int8 leaves %.1f%% of the %s of %d sampled rows, cut at %d tokens, as they are%s",
        100 * agreement,
        "scores (but for a twentieth of their spread)" if bundle.task == "regression" else "labels",
        rows.num_rows,
        exact.max_length,
        "" if fine else "; model.dtype=float32 is exact",
    )
