"""The actor: Arrow table in, the same table with predictions out."""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import torch

from bertray import cluster
from bertray.errors import ModelError
from bertray.model.bundle import open_bundle
from bertray.model.engine import Engine, EngineStats
from bertray.model.rate import matmul_rate
from bertray.model.settings import EngineSettings
from bertray.schema import append_predictions
from bertray.score.ledger import Attempts, TooManyDeathsError
from bertray.score.plan import Split, one_line
from bertray.score.pool import tokenizing_threads
from bertray.score.source import (
    BLOCK_NOTES,
    Reading,
    add_stats,
    fault_block,
    fault_of,
    split_of,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassifierSettings:
    """What crosses to the actor: paths and settings, never the model itself.

    Attributes:
        model: what the user named.
        model_digest: of the model the driver saw.
        engine: how to run it.
        reading: which columns hold the texts, which are passed through.
        num_threads: torch threads on CPU, or those that tokenize for a GPU; there None for an
            actor's share of its node.
        attempts: bounds how often a split, or loading the model, may kill the actor.
    """

    model: str
    model_digest: str
    engine: EngineSettings
    reading: Reading
    num_threads: int | None
    attempts: Attempts


class Notes(logging.Handler):
    """Collects our warnings in an actor, where nobody would read them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        logging.getLogger("bertray").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one warning."""
        self.messages.append(record.getMessage())

    def take(self) -> list[str]:
        """The warnings since the last call."""
        messages, self.messages = self.messages, []
        return messages


class Waits:
    """Adds up the seconds in which an actor that could compute had no split in hand."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # beside a GPU calls overlap
        self._num_in_hand = 0
        self._since = time.perf_counter()
        self._seconds = 0.0

    @contextmanager
    def in_hand(self) -> Iterator[None]:
        """Hold a split."""
        with self._lock:
            if not self._num_in_hand:
                self._seconds += time.perf_counter() - self._since
            self._num_in_hand += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_in_hand -= 1
                self._since = time.perf_counter()

    def take(self) -> float:
        """Those before the splits in hand that were not taken yet."""
        with self._lock:
            seconds, self._seconds = self._seconds, 0.0
        return seconds


class Classifier:
    """Holds a loaded model for as long as the actor lives."""

    def __init__(self, settings: ClassifierSettings) -> None:
        self._notes = Notes()
        self._reading = settings.reading
        self._attempts = settings.attempts
        self._abstain_below = settings.engine.abstain_below
        try:
            with self._attempts.start_of_actor():
                self._load(settings)
        except TooManyDeathsError as error:
            raise ModelError(
                f"model.path={settings.model}: no actor can load it: {error}"
            ) from error
        self._waits = Waits()

    def _load(self, settings: ClassifierSettings) -> None:
        num_threads = settings.num_threads or tokenizing_threads(
            cluster.own_node(), num_gpus=cluster.own_gpus()
        )
        torch.set_num_threads(num_threads)
        os.environ["RAYON_NUM_THREADS"] = str(num_threads)  # of the tokenizers
        bundle = open_bundle(settings.model)
        if bundle.digest != settings.model_digest:
            raise ModelError(
                f"model.path={settings.model}: digest {bundle.digest[:12]} on this node, "
                f"{settings.model_digest[:12]} on the driver; put the model where all nodes see it"
            )
        self._bundle = bundle
        self._engine = Engine(bundle, settings.engine, num_threads=num_threads)
        # int8 is held against float32, and ONNX Runtime against torch, which it may well beat.
        dtype = "float32" if settings.engine.dtype == "int8" else settings.engine.dtype
        device = torch.device(settings.engine.device)
        self._matmul_rate = matmul_rate(device, getattr(torch, dtype))

    def __call__(self, block: pa.Table) -> pa.Table:
        """Classify the rows of one split; a block that holds no rows goes by."""
        if fault_of(block) is not None:
            return block
        split = split_of(block)
        try:
            with self._waits.in_hand(), self._attempts.one("classifying", split.id):
                return self._classify(block, split)
        except TooManyDeathsError as error:
            return fault_block(split, one_line(error))

    def _classify(self, block: pa.Table, split: Split) -> pa.Table:
        """One split must not stop the others, whatever happens."""
        try:
            return self._append_predictions(block)
        except torch.AcceleratorError:
            # The device may be lost to this process for good: another one tries the split again.
            logger.exception("%s: giving up this actor", split.output)
            os._exit(1)
        except Exception as error:
            logger.exception("%s", split.output)
            return fault_block(split, f"{type(error).__name__}: {one_line(error)}")

    def _append_predictions(self, block: pa.Table) -> pa.Table:
        reading = self._reading
        stats = EngineStats()
        predictions = self._engine.predict(
            block.column(reading.text),
            block.column(reading.text_pair) if reading.text_pair else None,
            stats=stats,
        )
        scored = append_predictions(
            block.select(reading.passed(block.column_names)),
            predictions,
            labels=self._bundle.labels,
            task=self._bundle.task,
            thresholds=self._bundle.thresholds,
            abstain_below=self._abstain_below,
            prefix=reading.prefix,
        )
        notes = json.dumps(self._notes.take())
        done = stats.as_dict()
        return add_stats(
            scored.replace_schema_metadata({**block.schema.metadata, BLOCK_NOTES: notes}),
            done
            | {"matmul_flops": self._matmul_rate * done["compute_s"], "wait_s": self._waits.take()},
        )
