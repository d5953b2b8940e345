"""What a run tells Prometheus, through the agent of Ray on the driver's node.

Ray exports each name as ``ray_NAME``, a counter's with ``_total`` behind it, and adds the driver's
``WorkerId``: counters begin anew with each driver. All is recorded on the driver as receipts come,
so that a split which Ray computes twice counts once, and workers do nothing for it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from bertray.score.commits import Receipt
from bertray.score.summary import STAGES, Tally

# Ray exports what a gauge was last set to once, and drops it two exports later, of which there is
# one a second at most.
REFRESH_S = 1.0
COMMIT_BOUNDS_S = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
SPLIT_FAILED = "the split could not be scored"

# By what `Receipt.stats` calls them.
COUNTS = {
    "num_tokens": ("bertray_tokens", "Tokens of the rows computed."),
    "num_padded_tokens": ("bertray_padded_tokens", "Tokens computed, padding included."),
    "num_batches": ("bertray_batches", "Forward passes."),
    "num_new_halvings": ("bertray_halvings", "Token budgets halved because memory ran out."),
    "wait_s": ("bertray_wait_seconds", "Seconds that actors were loaded and had no split in hand."),
}


@contextmanager
def telling_prometheus(output: str, tally: Tally) -> Iterator["RunMetrics"]:
    """Tell how far a run is for as long as it lasts, whether or not receipts come.

    Args:
        output: the folder, as the config names it.
        tally: of the run.

    Yields:
        What is to count each new receipt.
    """
    metrics = RunMetrics(output, tally)
    stop = threading.Event()
    heartbeat = threading.Thread(target=metrics.keep, args=(stop,), name="metrics", daemon=True)
    heartbeat.start()
    try:
        yield metrics
    finally:
        stop.set()
        heartbeat.join()


class RunMetrics:
    """The series of one run, each tagged with its output folder."""

    def __init__(self, output: str, tally: Tally) -> None:
        self._tally = tally
        self._tags = {"output": _ascii(output)}
        self._rows = Counter("bertray_rows", "Rows put in place.", ("output",))
        self._quarantined = Counter(
            "bertray_quarantined_rows",
            "Rows that held a text and yet got no prediction, and rows of splits that failed.",
            ("output", "reason"),
        )
        self._counts = {
            name: Counter(series, meaning, ("output",))
            for name, (series, meaning) in COUNTS.items()
        }
        self._stage_seconds = Counter(
            "bertray_stage_seconds", "Seconds of work, of all workers.", ("output", "stage")
        )
        self._commit_seconds = Histogram(
            "bertray_commit_seconds",
            "From a split's predictions to its file in place.",
            COMMIT_BOUNDS_S,
            ("output",),
        )
        self._splits = Gauge("bertray_splits", "Splits by state.", ("output", "state"))
        self._input_rows = Gauge("bertray_input_rows", "Rows of all splits.", ("output",))
        self._output_rows = Gauge("bertray_output_rows", "Rows in the output.", ("output",))
        self._actors = Gauge("bertray_actors", "Actors that may classify at once.", ("output",))

    def count(self, receipt: Receipt) -> None:
        """Add what was done for one split that the tally knows."""
        stats = receipt.stats
        self._add(self._rows, receipt.num_rows)
        for name, counter in self._counts.items():
            self._add(counter, stats.get(name, 0))
        for stage in STAGES:
            self._add(self._stage_seconds, stats.get(f"{stage}_s", 0.0), stage=stage)
        if receipt.fault is not None:
            rows = self._tally.num_rows_of(receipt.output)
            self._add(self._quarantined, rows, reason=SPLIT_FAILED)
        else:
            for status, rows in receipt.bad_rows.items():
                # What a library said stands behind the colon: too many values for a tag.
                self._add(self._quarantined, rows, reason=_ascii(status.partition(":")[0]))
            self._commit_seconds.observe(stats["write_s"], self._tags)
        self._show()

    def keep(self, stop: threading.Event) -> None:
        """Set the gauges again and again until told to stop."""
        while not stop.wait(REFRESH_S):
            if ray.is_initialized():  # else they would lack the driver's tags
                self._show()

    def _show(self) -> None:
        progress, pool = self._tally.progress(), self._tally.summary.pool
        self._input_rows.set(progress.num_rows, self._tags)
        self._output_rows.set(progress.num_rows_done, self._tags)
        for state, count in self._tally.splits_by_state().items():
            self._splits.set(count, {**self._tags, "state": state})
        if pool is not None:
            self._actors.set(pool.max_actors, self._tags)

    def _add(self, counter: Counter, value: float, **tags: str) -> None:
        """Ray takes no 0, so a series appears with the first of what it counts."""
        if value > 0:
            counter.inc(value, {**self._tags, **tags})


def _ascii(value: str) -> str:
    """A tag's value; Ray takes no other characters, so they are written out."""
    return value.encode("ascii", "backslashreplace").decode()
