"""Texts to what the workers train on: token ids and targets, one row an example.

The cluster reads the shards and tokenizes them through Ray Data, each piece by itself, in any
order; the result is put in row-id order, so that it does not depend on who did what.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from bertray import cluster, storage
from bertray.config import TrainData
from bertray.errors import DataError
from bertray.model.pretrained import load_tokenizer
from bertray.text.columns import as_column, is_blank, is_null, not_utf8
from bertray.text.long import RowEncoder, Rows, make_row_encoder
from bertray.text.ragged import Encoded, offsets_of, positions_of, take
from bertray.train.augment import Augmenter, choose_rows, count_by_method, make_copies
from bertray.train.base import Base, folder_of
from bertray.train.examples import Examples, select
from bertray.train.labels import Labelled, Piece, unreadable
from bertray.train.targets import some
from bertray.train.teacher import Teacher, teach

logger = logging.getLogger(__name__)

ROWS_PER_TOKENIZER = 50_000  # below so many, starting another process takes longer than it saves
# Models take so many runs of rows each, and these at least: fewer rounds end unevenly, and a run
# reads all of its row groups.
ROUNDS, ROWS_PER_MODEL = 4, 1_024
ROWS, ROWS_TO_COPY = "rows", "rows_to_copy"
TOKENIZER_CPUS = 0.8  # the rest lets Ray Data's own tasks run on a small machine


def encode(
    labelled: Labelled,
    *,
    data: TrainData,
    base: Base,
    augmenter: Augmenter | None,
    teacher: Teacher | None,
    resources: cluster.Resources,
    num_gpus: int = 0,
) -> tuple[Examples, Examples, dict[str, int]]:
    """Read, augment and tokenize all texts on the cluster.

    Rows whose text is null, blank or not valid UTF-8 are left out, with a warning that gives their
    number.

    Args:
        labelled: the rows.
        data: the config's section.
        base: whose tokenizer is taken.
        augmenter: makes copies of training rows; None for no copies.
        teacher: says its logits of each row and copy; None without one.
        resources: of the cluster.
        num_gpus: that models which rewrite or teach may run on, each on one; 0 for CPUs.

    Returns:
        The rows for training with their copies, each after its row; the rows for validation; and
        how many copies each method has made.

    Raises:
        DataError: no training row, or no validation row, has a text.
    """
    num_rows, num_cpus = len(labelled.targets), resources.num_cpus
    runs_models = teacher is not None or (augmenter is not None and augmenter.runs_models)
    most_rows = None
    num_gpus = num_gpus if runs_models else 0
    if runs_models:
        at_once = num_gpus or max(int(num_cpus), 1)
        most_rows = max(-(-num_rows // (ROUNDS * at_once)), ROWS_PER_MODEL)
    items = list(pieces_to_read(labelled, augmenter, most_rows=most_rows))
    wanted = len(items)
    if augmenter is None and teacher is None:
        wanted = min(-(-num_rows // ROWS_PER_TOKENIZER), wanted)
    settings = {
        "base": base,
        "columns": [data.text, *filter(None, [data.text_pair])],
        "augmenter": augmenter,
        "teacher": teacher,
    }
    how: dict[str, Any] = {
        "fn": tokenize,
        "fn_kwargs": settings,
        "compute": TaskPoolStrategy(size=max(min(wanted, int(num_cpus)), 1)),
    }
    if num_gpus:
        how = {
            "fn": StayingTokenizer,
            "fn_constructor_kwargs": settings,
            "compute": ActorPoolStrategy(
                min_size=1,
                initial_size=min(wanted, num_gpus),
                max_size=min(wanted, num_gpus),
                max_tasks_in_flight_per_actor=1,
            ),
            "num_gpus": 1,
        }
    with DataContext.current(cluster.pipeline_context(cluster.PipelineGuard(resources.num_nodes))):
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            # Without a CPU now its nodes have yet to come.
            num_cpus=min(TOKENIZER_CPUS, num_cpus / 2 or TOKENIZER_CPUS),
            **how,
        )
    blocks = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    tables = list(cluster.unwrapped(iter(blocks)))  # Ray Data hands on no empty ones
    if not tables:
        raise _no_text("data.train", data)
    table = pa.concat_tables(tables)
    numbers = table.column("copy").to_numpy()[table.column("window").to_numpy() == 0]
    examples = in_row_order(table, labelled.targets)
    del table, tables  # as large as the examples
    if num_dropped := num_rows - int((numbers == 0).sum()):
        logger.warning("rows without text are left out num_rows=%d of=%d", num_dropped, num_rows)
    held_out = labelled.is_validation[examples.row_ids]
    for key, rows in (("data.train", ~held_out), ("data.validation", held_out)):
        if not rows.any():
            raise _no_text(key, data)
    if names := labels_without_rows(labelled, examples.targets, ~held_out):
        logger.warning("labels are not learnt, as no training row of theirs has a text: %s", names)
    return (
        select(examples, np.flatnonzero(~held_out)),
        select(examples, np.flatnonzero(held_out)),
        count_by_method(numbers, augmenter) if augmenter is not None else {},
    )


def labels_without_rows(labelled: Labelled, targets: np.ndarray, rows: np.ndarray) -> str:
    """The names of labels that none of the ``rows``, bool of shape (N,), has; some of them."""
    if labelled.task == "regression":
        return ""
    if labelled.task == "multi_label":
        is_met = np.logical_or.reduce(targets, axis=0, where=rows[:, np.newaxis])
    else:
        is_met = np.bincount(targets[rows], minlength=len(labelled.labels)) > 0
    missing = [labelled.labels[label_id] for label_id in np.flatnonzero(~is_met)]
    return some(missing) if missing else ""


class StayingTokenizer:
    """`tokenize` in a process that stays: Ray ends a task's that had a GPU, with its models."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Pieces in, sequences out."""
        return tokenize(batch, **self._settings)


def tokenize(
    batch: pa.Table,
    *,
    base: Base,
    columns: Sequence[str],
    augmenter: Augmenter | None = None,
    teacher: Teacher | None = None,
) -> pa.Table:
    """Pieces of shards in, one to a row; sequences by row id, copy and window out.

    With them come the teacher's logits where there is one.
    """
    encoder = _encoder(base)
    tables = []
    for row in batch.to_pylist():
        chosen = np.array(row.pop(ROWS_TO_COPY, []), np.int64)
        first, num_rows = row.pop(ROWS)
        row_ids, texts = _read_texts(Piece(**row), columns, first=first, num_rows=num_rows)
        numbers = np.zeros(len(row_ids), np.int64)
        if augmenter is not None:
            row_ids, numbers, texts = _with_copies(row_ids, texts, chosen, augmenter)
        logits = teach(teacher, texts) if teacher is not None else None
        tables.append(_as_table(row_ids, numbers, encoder(*texts), logits))
    return pa.concat_tables(tables)


def pieces_to_read(
    labelled: Labelled, augmenter: Augmenter | None = None, *, most_rows: int | None = None
) -> Iterator[dict[str, Any]]:
    """What Ray Data hands out: pieces, or runs of rows in them, of ``most_rows`` at most each.

    With the row ids in there that are to have copies.
    """
    chosen = np.zeros(0, np.int64) if augmenter is None else choose_rows(labelled, augmenter)
    starts = [*(piece.first_row for piece in labelled.pieces), len(labelled.targets)]
    for piece, (start, end) in zip(labelled.pieces, pairwise(starts), strict=True):
        for first in range(start, end, most_rows or end - start):
            last = min(first + (most_rows or end - start), end)
            item = asdict(piece) | {ROWS: [first - start, last - first]}
            if augmenter is not None:
                bounds = np.searchsorted(chosen, [first, last])
                item[ROWS_TO_COPY] = chosen[slice(*bounds)].tolist()
            yield item


@cache
def _encoder(base: Base) -> RowEncoder:
    """Loaded once a process; Ray gives its processes one task after the other."""
    return make_row_encoder(
        load_tokenizer(folder_of(base)), max_length=base.max_length, long_text=base.long_text
    )


def _read_texts(
    piece: Piece, columns: Sequence[str], *, first: int, num_rows: int
) -> tuple[np.ndarray, list[list[str]]]:
    """Row ids and texts of the rows that have a text in each column, and one that can be read.

    Of so many rows from ``first`` on, counted within the piece.
    """
    row_groups = range(piece.first_row_group, piece.first_row_group + piece.num_row_groups)
    try:
        with storage.open_input(piece.uri) as file:
            shard = pq.ParquetFile(file, page_checksum_verification=True)
            table = shard.read_row_groups(list(row_groups), columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(piece.uri, error) from error
    table = table.slice(first, num_rows)
    texts = [as_column(table.column(name)) for name in columns]
    filled = np.ones(table.num_rows, bool)
    for column in texts:
        filled &= ~(is_null(column) | is_blank(column) | not_utf8(column))
    rows = np.flatnonzero(filled)
    return piece.first_row + first + rows, [column.take(rows).to_pylist() for column in texts]


def _with_copies(
    row_ids: np.ndarray, texts: list[list[str]], chosen: np.ndarray, augmenter: Augmenter
) -> tuple[np.ndarray, np.ndarray, list[list[str]]]:
    """Row ids, numbers and texts of the rows, and of the copies of those chosen after them."""
    numbers = np.zeros(len(row_ids), np.int64)
    rows = np.flatnonzero(np.isin(row_ids, chosen))
    if not len(rows):
        return row_ids, numbers, texts
    sources = [[column[row] for row in rows] for column in texts]
    copies = make_copies(sources, row_ids[rows], augmenter)
    return (
        np.concatenate([row_ids, row_ids[rows][copies.rows]]),
        np.concatenate([numbers, copies.numbers]),
        [column + more for column, more in zip(texts, copies.columns, strict=True)],
    )


def _as_table(
    row_ids: np.ndarray, numbers: np.ndarray, rows: Rows, logits: np.ndarray | None
) -> pa.Table:
    encoded, num_windows = rows.encoded, rows.num_windows
    offsets = pa.array(encoded.offsets)
    arrays = {
        "row_id": pa.array(np.repeat(row_ids, num_windows)),
        "copy": pa.array(np.repeat(numbers, num_windows)),
        "window": pa.array(positions_of(np.zeros_like(num_windows), num_windows)),
        "input_ids": pa.LargeListArray.from_arrays(offsets, pa.array(encoded.input_ids)),
    }
    if encoded.token_type_ids is not None:
        segments = pa.array(encoded.token_type_ids)
        arrays["token_type_ids"] = pa.LargeListArray.from_arrays(offsets, segments)
    if logits is not None:
        flat = pa.array(np.repeat(logits, num_windows, axis=0).ravel())
        arrays["teacher_logits"] = pa.FixedSizeListArray.from_arrays(flat, logits.shape[1])
    return pa.table(arrays)


def in_row_order(table: pa.Table, targets: np.ndarray) -> Examples:
    """Blocks come in any order: Ray Data streams, and cuts what is large. Copies come after."""
    row_of, copy, window = (table.column(name).to_numpy() for name in ("row_id", "copy", "window"))
    order = np.lexsort((window, copy, row_of))
    firsts = np.flatnonzero(window[order] == 0)
    ids = table.column("input_ids").combine_chunks()
    segments = None
    if "token_type_ids" in table.column_names:
        segments = table.column("token_type_ids").combine_chunks().flatten().to_numpy()
    teacher = None
    if "teacher_logits" in table.column_names:
        logits = table.column("teacher_logits").combine_chunks()
        teacher = logits.flatten().to_numpy().reshape(len(logits), -1)[order[firsts]]
    encoded = Encoded(
        input_ids=ids.flatten().to_numpy(),
        offsets=offsets_of(pc.list_value_length(ids).to_numpy()),
        token_type_ids=segments,
    )
    row_ids = row_of[order[firsts]]
    return Examples(
        encoded=take(encoded, order),
        targets=targets[row_ids],
        row_ids=row_ids,
        windows=None if len(firsts) == len(order) else np.append(firsts, len(order)),
        teacher_logits=teacher,
    )


def _no_text(key: str, data: TrainData) -> DataError:
    where = {
        "data.train": data.train,
        "data.validation": data.validation or "a share of data.train",
    }
    return DataError(
        f"{key}={where[key]}: column {data.text!r} has a text in none of the rows; "
        "set data.text to the column that holds the text"
    )
