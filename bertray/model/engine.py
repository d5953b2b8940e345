"""Texts in, probabilities out, in input order. No Ray in here.

# N = rows, C = labels
"""

import logging
import threading
import time
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from bertray.errors import ModelError
from bertray.model.backend import TorchBackend
from bertray.model.bundle import Bundle
from bertray.model.calibration import calibrate
from bertray.model.doubt import FINER, in_doubt
from bertray.model.forward import Backend, Outcome, run_batches
from bertray.model.pretrained import load_tokenizer, num_token_ids, read_config
from bertray.model.rate import forward_flops
from bertray.model.settings import EngineSettings
from bertray.model.windows import pool_windows
from bertray.schema import (
    EMPTY_TEXT,
    NOT_FINITE,
    NOT_UTF8,
    NULL_TEXT,
    OK,
    Calibration,
    Predictions,
    Scale,
    Task,
    has_labels,
)
from bertray.text.columns import Texts, as_column, distinct, is_blank, is_null, not_utf8
from bertray.text.long import Rows, make_row_encoder
from bertray.text.ragged import Encoded, take

logger = logging.getLogger(__name__)

SAME_SCORE = 0.05  # of the scores' standard deviation: closer ones count as the same


@dataclass
class EngineStats:
    """What an engine did; adds up over the calls it is given to.

    Attributes:
        num_rows: rows asked for.
        num_distinct: of them, those computed: repeats and rows without a text are not.
        num_tokens: of the rows computed; what windows share is counted in each.
        num_padded_tokens: what the device computed for them, padding included.
        num_tokens_again: what it computed once more, in a finer number type, of rows that were left
            in doubt; padding included.
        num_batches: forward passes.
        num_flops: operations of the rows computed, padding not counted; see `forward_flops`, which
            does not know all models'.
        num_halvings: times that the engine has halved its token budget because memory ran out, now
            or in an earlier call. Another budget may change the last bits of a probability.
        num_new_halvings: of these, those of the calls that the other figures are of.
        seconds: wall clock by stage. ``compute`` is the device's own time, during which the host
            may well tokenize for another call.
    """

    num_rows: int = 0
    num_distinct: int = 0
    num_tokens: int = 0
    num_padded_tokens: int = 0
    num_tokens_again: int = 0
    num_batches: int = 0
    num_flops: float = 0.0
    num_halvings: int = 0
    num_new_halvings: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: {"tokenize": 0.0, "transfer": 0.0, "compute": 0.0}
    )

    def as_dict(self) -> dict[str, float]:
        """All figures by name; seconds as ``tokenize_s`` and so on."""
        counts = {name: value for name, value in vars(self).items() if name != "seconds"}
        return counts | {f"{name}_s": value for name, value in self.seconds.items()}


def verify_int8(
    bundle: Bundle,
    settings: EngineSettings,
    texts: Texts,
    pairs: Texts | None = None,
    *,
    num_threads: int | None = None,
) -> float | None:
    """Share of texts whose labels stay the same when matrices are multiplied in 8 bits.

    To be called on the driver, with one sample for the whole run: workers that decided each by
    themselves would not compute the same.

    Args:
        bundle: the model.
        settings: as they would be without int8.
        texts: a sample of what is to be classified.
        pairs: as many.
        num_threads: cores to compute on.

    Returns:
        Of the texts that can get a label at all, the share for which it is the same, or for which
        both abstain; None if none can.
        Of a regression model: for which the scores differ by a twentieth of their standard
        deviation at most.

    Raises:
        ModelError: ONNX Runtime is not installed.
    """
    exact = Engine(bundle, settings, num_threads=num_threads).predict(texts, pairs)
    rounded_settings = replace(settings, backend="onnx", dtype="int8")
    rounded = Engine(bundle, rounded_settings, num_threads=num_threads).predict(texts, pairs)
    rows = np.isfinite(exact.probabilities).all(axis=1)
    if not rows.any():
        return None
    left, right = exact.probabilities[rows], rounded.probabilities[rows]
    if bundle.task == "regression":
        return float((np.abs(left - right) <= SAME_SCORE * left.std()).mean())
    if bundle.task == "multi_label":
        same = has_labels(left, bundle.thresholds) == has_labels(right, bundle.thresholds)
        return float(same.all(axis=1).mean())
    same = left.argmax(axis=1) == right.argmax(axis=1)
    if settings.abstain_below is not None:
        unsure, now_unsure = (side.max(axis=1) < settings.abstain_below for side in (left, right))
        same = np.where(unsure | now_unsure, unsure & now_unsure, same)
    return float(same.mean())


def resolve_backend(bundle: Bundle, settings: EngineSettings, *, wanted: str) -> EngineSettings:
    """The settings, but with torch where ONNX Runtime was ours to take and has other numbers.

    To be called on the driver, before anything is sent to a worker: what each found out by itself
    would not be what the footers say. On this machine the graph is made for the workers, too.

    Args:
        bundle: the model.
        settings: from `resolve_settings`.
        wanted: the setting of the backend.
    """
    if wanted != "auto" or settings.backend != "onnx" or settings.dtype == "int8":
        return settings
    try:
        _load_backend(bundle, settings, pad_token_id=0, num_threads=torch.get_num_threads())
    except ModelError as error:
        logger.warning("model.backend=auto goes on with torch: %s", error)
        return replace(settings, backend="torch")
    return settings


class Engine:
    """A loaded model that labels texts.

    Two threads may call it at once: one tokenizes while the other's batches go to the device. More
    would only wait.

    Args:
        bundle: the model.
        settings: from `resolve_settings`.
        num_threads: cores to compute on; what torch is set to by default.
    """

    def __init__(
        self, bundle: Bundle, settings: EngineSettings, *, num_threads: int | None = None
    ) -> None:
        num_threads = num_threads or torch.get_num_threads()
        tokenizer = load_tokenizer(bundle.folder)
        self._encoder = make_row_encoder(
            tokenizer,
            max_length=settings.max_length,
            long_text=settings.long_text,
            parallel=num_threads > 1,
        )
        self._bundle, self._settings = bundle, settings
        self._load = partial(
            _load_backend,
            bundle,
            pad_token_id=tokenizer.pad_token_id or 0,
            num_threads=num_threads,
        )
        self._backend = self._load(settings)
        self._max_batch_tokens = settings.max_batch_tokens
        self._config = read_config(bundle.folder, source=bundle.source, key="model.path")
        self._num_labels = len(bundle.labels)
        self._probe = self._encoder(["a text"]).encoded
        self._num_halvings = 0
        self._tokenizing, self._computing = threading.Lock(), threading.Lock()

    def predict(
        self, texts: Texts, pairs: Texts | None = None, *, stats: EngineStats | None = None
    ) -> Predictions:
        """Classify N texts, or N pairs of texts.

        Args:
            texts: an Arrow column of any text type, or a sequence.
            pairs: as many.
            stats: what is done is added to it.

        Returns:
            The predictions in input order. A row that is null, empty or blank, is not UTF-8, holds
            no tokens or one that the model does not have, or breaks it has none, but a status that
            says so.
        """
        stats = EngineStats() if stats is None else stats
        columns = [as_column(column) for column in (texts, pairs) if column is not None]
        num_rows = len(columns[0])
        status = np.full(num_rows, OK, dtype=object)
        for column in reversed(columns):
            for find, reason in (
                (is_blank, EMPTY_TEXT),
                (is_null, NULL_TEXT),
                (not_utf8, NOT_UTF8),
            ):
                status[find(column)] = reason
        probabilities = np.full((num_rows, self._num_labels), np.nan, np.float32)
        present = np.flatnonzero(status == OK)
        if len(present):
            if len(present) < num_rows:
                columns = [column.take(present) for column in columns]
            with self._tokenizing:
                start = time.perf_counter()
                texts_once, twins = distinct(columns)
                rows = self._encoder(*texts_once)
                stats.seconds["tokenize"] += time.perf_counter() - start
            computed, reasons = self._compute(rows, stats)
            probabilities[present] = computed[twins]
            status[present] = reasons[twins]
        stats.num_rows += num_rows
        return Predictions(probabilities, tuple(status))

    def _compute(self, rows: Rows, stats: EngineStats) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of shape (N, C) and status of shape (N,) of rows that hold text."""
        encoded, settings = rows.encoded, self._settings
        row_of = np.repeat(np.arange(len(rows)), rows.num_windows)
        logits, outcome = self._run(self._backend, encoded, stats)
        failures = outcome.failures
        stats.num_padded_tokens += outcome.num_padded_tokens
        probabilities = self._read(logits, rows)
        if settings.dtype in FINER:
            doubt = in_doubt(
                probabilities,
                dtype=settings.dtype,
                task=self._bundle.task,
                thresholds=self._bundle.thresholds,
                abstain_below=settings.abstain_below,
            )[row_of]
            doubt[list(failures)] = False
            if doubt.any():
                again = np.flatnonzero(doubt)
                logits[again], outcome = self._run(self._finer, take(encoded, again), stats)
                stats.num_tokens_again += outcome.num_padded_tokens
                failures |= {int(again[place]): why for place, why in outcome.failures.items()}
                probabilities = self._read(logits, rows)
        status = np.full(len(rows), OK, dtype=object)
        status[~np.isfinite(probabilities).all(axis=1)] = NOT_FINITE
        # Of a row's windows that failed the first says why.
        for sequence, reason in sorted(failures.items(), reverse=True):
            status[row_of[sequence]] = reason
        probabilities[status != OK] = np.nan
        stats.num_distinct += len(rows)
        stats.num_tokens += int(encoded.offsets[-1])
        stats.num_flops += forward_flops(
            self._config, encoded.lengths, first_only=self._backend.is_first_only
        )
        return probabilities, status

    def _run(
        self, backend: Backend, encoded: Encoded, stats: EngineStats
    ) -> tuple[np.ndarray, Outcome]:
        """Logits of shape (N, C), and what else came of the batches."""
        with self._computing:
            outcome = run_batches(
                backend,
                encoded,
                max_tokens=self._max_batch_tokens,
                probe=self._probe,
                num_token_ids=num_token_ids(self._config),
            )
            self._max_batch_tokens = outcome.max_tokens  # remembered: the next rows are no smaller
            self._num_halvings += outcome.num_halvings
            stats.num_halvings = self._num_halvings
            stats.num_new_halvings += outcome.num_halvings
        # On CUDA the next call's batches can line up behind these by now.
        logits = outcome.collect(num_rows=len(encoded), num_labels=self._num_labels)
        stats.num_batches += outcome.num_batches
        stats.seconds["transfer"] += outcome.transfer_s
        stats.seconds["compute"] += outcome.compute_s
        return logits, outcome

    def _read(self, logits: np.ndarray, rows: Rows) -> np.ndarray:
        """Probabilities of shape (N, C) from the logits of the rows' windows."""
        pooled = pool_windows(
            torch.from_numpy(logits), rows.num_windows, aggregate=self._settings.long_text.aggregate
        )
        return read_logits(
            pooled,
            task=self._bundle.task,
            scale=self._bundle.scale,
            calibration=self._bundle.calibration if self._settings.calibrated else None,
        )

    @cached_property
    def _finer(self) -> Backend:
        """For rows that are in doubt."""
        settings = replace(self._settings, dtype=FINER[self._settings.dtype])
        if settings.dtype == "bfloat16":
            logger.warning(
                "numbers of some rows leave the range of float16: these rows are computed again "
                "in bfloat16; where most of them do, model.dtype=bfloat16 is faster"
            )
        return self._load(settings)


def read_logits(
    logits_NC: Tensor,
    *,
    task: Task,
    scale: Scale | None = None,
    calibration: Calibration | None = None,
) -> np.ndarray:
    """Softmax over the labels; for independent labels the logistic function of each.

    Args:
        logits_NC: floats, on the CPU.
        task: how they are read.
        scale: brings the scores of a regression model to the unit of what it was trained on.
        calibration: of the probabilities.

    Returns:
        Probabilities, or scores of shape (N, 1), in the same number type.
    """
    if task == "regression":
        if scale is not None:
            # In 64 bits: the mean may be large beside the deviation.
            logits_NC = (scale.mean + scale.std * logits_NC.double()).to(logits_NC.dtype)
        return np.asarray(logits_NC.numpy())
    if calibration is not None:
        logits_NC = calibrate(logits_NC, calibration, task=task)
    result = logits_NC.sigmoid() if task == "multi_label" else logits_NC.softmax(dim=-1)
    return np.asarray(result.numpy())


def _load_backend(
    bundle: Bundle, settings: EngineSettings, *, pad_token_id: int, num_threads: int
) -> Backend:
    if settings.backend == "onnx":
        try:
            from bertray.model.onnx import OnnxBackend
        except ImportError as error:
            raise ModelError(
                f"model.backend=onnx: {error}; install bertray[fast] on all nodes, or set "
                "model.backend=torch and another model.dtype than int8"
            ) from error
        return OnnxBackend(
            bundle,
            precision="int8" if settings.dtype == "int8" else "float32",
            pad_token_id=pad_token_id,
            num_threads=num_threads,
        )
    return TorchBackend(
        bundle, device=settings.device, dtype=settings.dtype, pad_token_id=pad_token_id
    )
