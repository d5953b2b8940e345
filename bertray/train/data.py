"""Texts to what the workers train on: token ids and targets, one row an example.

The cluster reads the shards and tokenizes them through Ray Data, each piece by itself, in any
order; the result is put in row-id order, so that it does not depend on who did what.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data
from ray.data import DataContext, TaskPoolStrategy

from bertray import cluster, storage
from bertray.config import TrainData
from bertray.errors import DataError
from bertray.model.bundle import load_tokenizer
from bertray.text.encoding import Encoded, Encoder
from bertray.train.base import Base, folder_of
from bertray.train.examples import Examples, select
from bertray.train.labels import Labelled, Piece

logger = logging.getLogger(__name__)

ROWS_PER_TOKENIZER = 50_000  # below so many, starting another process takes longer than it saves
TOKENIZER_CPUS = 0.8  # the rest lets Ray Data's own tasks run on a small machine


def encode(
    labelled: Labelled, *, data: TrainData, base: Base, num_cpus: float
) -> tuple[Examples, Examples]:
    """Read and tokenize all texts on the cluster: rows for training, rows for validation.

    Rows whose text is null or blank are left out, with a warning that gives their number.

    Raises:
        DataError: no training row, or no validation row, has a text.
    """
    num_rows = len(labelled.targets)
    wanted = min(-(-num_rows // ROWS_PER_TOKENIZER), len(labelled.pieces))
    DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.from_items(
        [asdict(piece) for piece in labelled.pieces], override_num_blocks=len(labelled.pieces)
    ).map_batches(
        tokenize,  # type: ignore[arg-type]  # Ray knows no batch type but all of them
        fn_kwargs={"base": base, "columns": [data.text, *filter(None, [data.text_pair])]},
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=TaskPoolStrategy(size=max(min(wanted, int(num_cpus)), 1)),
        num_cpus=min(TOKENIZER_CPUS, num_cpus / 2),
    )
    blocks = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    tables = list(cluster.unwrapped(iter(blocks)))  # Ray Data hands on no empty ones
    if not tables:
        raise _no_text("data.train", data)
    examples = in_row_order(pa.concat_tables(tables), labelled.targets)
    if num_dropped := num_rows - len(examples):
        logger.warning("rows without text are left out num_rows=%d of=%d", num_dropped, num_rows)
    held_out = labelled.is_validation[examples.row_ids]
    for key, rows in (("data.train", ~held_out), ("data.validation", held_out)):
        if not rows.any():
            raise _no_text(key, data)
    return select(examples, np.flatnonzero(~held_out)), select(examples, np.flatnonzero(held_out))


def tokenize(batch: pa.Table, *, base: Base, columns: Sequence[str]) -> pa.Table:
    """Pieces of shards in, one to a row; token ids by row id out."""
    encoder = _encoder(base)
    return pa.concat_tables(
        [_tokenize_piece(Piece(**row), encoder, columns) for row in batch.to_pylist()]
    )


@cache
def _encoder(base: Base) -> Encoder:
    """Loaded once a process; Ray gives its processes one task after the other."""
    return Encoder(load_tokenizer(folder_of(base)), max_length=base.max_length)


def _tokenize_piece(piece: Piece, encoder: Encoder, columns: Sequence[str]) -> pa.Table:
    row_groups = range(piece.first_row_group, piece.first_row_group + piece.num_row_groups)
    try:
        with storage.open_input(piece.uri) as file:
            shard = pq.ParquetFile(file, page_checksum_verification=True)
            table = shard.read_row_groups(list(row_groups), columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{piece.uri}: cannot be read: {error}; write it anew") from error
    texts = [table.column(name).cast(pa.large_string()) for name in columns]
    filled = np.ones(table.num_rows, bool)
    for column in texts:
        blank = pc.equal(pc.utf8_trim_whitespace(column), "")
        filled &= ~pc.fill_null(blank, True).to_numpy()
    rows = np.flatnonzero(filled)
    encoded = encoder(*(column.take(rows).to_pylist() for column in texts))
    offsets = pa.array(encoded.offsets)
    arrays = {
        "row_id": pa.array(piece.first_row + rows),
        "input_ids": pa.LargeListArray.from_arrays(offsets, pa.array(encoded.input_ids)),
    }
    if encoded.token_type_ids is not None:
        segments = pa.array(encoded.token_type_ids)
        arrays["token_type_ids"] = pa.LargeListArray.from_arrays(offsets, segments)
    return pa.table(arrays)


def in_row_order(table: pa.Table, targets: np.ndarray) -> Examples:
    """Blocks come in any order: Ray Data streams."""
    row_ids = table.column("row_id").to_numpy()
    ids = table.column("input_ids").combine_chunks()
    segments = None
    if "token_type_ids" in table.column_names:
        segments = table.column("token_type_ids").combine_chunks().flatten().to_numpy()
    lengths = pc.list_value_length(ids).to_numpy()
    encoded = Encoded(
        input_ids=ids.flatten().to_numpy(),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        token_type_ids=segments,
    )
    order = np.argsort(row_ids)
    return select(Examples(encoded, targets[row_ids], row_ids), order)


def _no_text(key: str, data: TrainData) -> DataError:
    where = {
        "data.train": data.train,
        "data.validation": data.validation or "a share of data.train",
    }
    return DataError(
        f"{key}={where[key]}: column {data.text!r} has a text in none of the rows; "
        "set data.text to the column that holds the text"
    )
