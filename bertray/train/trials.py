"""A search's trials on Ray Tune: how many at once, which are stopped, what came of each.

A trial is a training as any other, in a process that tells Tune of its epochs; ASHA says when it is
not worth another one. What a trial came to is written down when it has ended, and one that has not
goes on from its checkpoints: so the same command, run again, does what is missing. Tune could do
that too, out of a pickle in the output folder.
"""

import logging
import math
import os
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from queue import Queue
from types import SimpleNamespace
from typing import Any, Literal

import ray
import ray.util
from ray import tune
from ray.train import Result
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from bertray import storage
from bertray.config import Search
from bertray.errors import BertrayError, DataError
from bertray.train import lineage as folder
from bertray.train.job import Job
from bertray.train.loop import SCORE, Order
from bertray.train.measure import score_of
from bertray.train.search import Trial, TrialEpoch, ranked, settings_of, trial_of
from bertray.train.state import Epoch, Resumed
from bertray.train.steps import Step
from bertray.train.workers import (
    Run,
    earlier_epochs,
    history_of,
    in_background,
    queue_here,
    train_on_workers,
)

logger = logging.getLogger(__name__)

NUMBER = "number"  # what Tune varies: the trial's
EPOCH, TOLD, IS_LAST, FAILURE = "epoch", "told", "is_last", "failure"
Ending = Literal["done", "stopped"] | BertrayError
NODE_SHARE = 0.001  # of the driver's node that a trial's own process holds: it waits for workers


def run_trials(
    job: Job,
    runs: Sequence[Run],
    *,
    at_once: int,
    on_progress: Callable[[Trial | TrialEpoch], None],
) -> list[Trial]:
    """Run those that no earlier attempt has brought to an end.

    One whose loss was not finite has ended so. One that failed otherwise is tried again: there may
    be memory for it, or a place that all nodes see, the next time.

    Args:
        job: the search.
        runs: of its trials, in their order.
        at_once: trials at most.
        on_progress: is told of each epoch, and of each trial once that is written down.

    Returns:
        All of them, the best first.

    Raises:
        BertrayError: all have failed; as the first of them did.
    """
    search, output = job.config.search, storage.absolute(job.config.output.path)
    record = storage.join(output, folder.RUN, folder.run_name(job.lineage, kind="search"))
    trials = read_trials(record, len(runs))
    for trial in trials.values():
        on_progress(trial)
    epochs: dict[int, dict[float, Epoch]] = defaultdict(dict)
    errors: dict[int, BertrayError] = {}

    def on_event(event: tuple[int, Epoch | Ending]) -> None:
        number, said = event
        config = job.trials[number - 1].config
        if isinstance(said, Epoch):
            if said.epoch not in epochs[number]:  # with its end, a trial tells its last one again
                epochs[number][said.epoch] = said
                on_progress(TrialEpoch(number, settings_of(config, search.keys), said))
            return
        trial = trial_of(
            number,
            config,
            list(epochs[number].values()),
            keys=search.keys,
            metric=job.metric,
            ending=said,
        )
        if isinstance(said, BertrayError):
            errors[number] = said
        if number not in errors or isinstance(said, DataError):
            write_trial(record, trial)
        trials[number] = trial
        on_progress(trial)

    left = [number for number in range(1, len(runs) + 1) if number not in trials]
    if left:
        num_epochs = max(run.worker_job.training.num_epochs for run in runs)
        scheduler = make_scheduler(search, num_epochs=num_epochs, known=trials.values())
        tune_trials(left, runs, scheduler=scheduler, at_once=at_once, on_event=on_event)
    if all(trial.status == "failed" for trial in trials.values()):
        first = errors.get(1) or DataError(trials[1].reason)
        raise type(first)(f"all {len(runs)} trials failed, the first so: {first}")
    return ranked(trials.values())


def tune_trials(
    numbers: Sequence[int],
    runs: Sequence[Run],
    *,
    scheduler: TrialScheduler,
    at_once: int,
    on_event: Callable[[tuple[int, Epoch | Ending]], None],
) -> None:
    """Let Tune run some trials, and pass on what `_Watch` hears of them."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # it would write all that it is told
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the old one is silent when told to be
    if not logger.isEnabledFor(logging.DEBUG):
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are told by us
    events: Queue[Any] = Queue()
    here = f"node:{ray.util.get_node_ip_address()}"  # type: ignore[no-untyped-call]
    trainable = tune.with_resources(
        tune.with_parameters(_TrialProcess, runs=runs), {"CPU": 0, here: NODE_SHARE}
    )
    with tempfile.TemporaryDirectory() as scratch:
        in_background(
            lambda: tune.run(
                trainable,
                config={NUMBER: tune.grid_search(list(numbers))},
                scheduler=scheduler,
                callbacks=[_Watch(events)],
                max_concurrent_trials=at_once,
                storage_path=scratch,
                raise_on_failed_trial=False,
                verbose=0,
            ),
            events=events,
            on_event=on_event,
        )


class _TrialProcess(tune.Trainable):
    """What Tune runs for each trial: a training that after each epoch waits for Tune's word.

    So all workers of a trial that is stopped come to their end; if Tune ended this process under
    them, Ray might not give back what they had reserved.
    """

    def setup(  # type: ignore[override]  # as `tune.with_parameters` has it
        self, config: dict[str, Any], *, runs: Sequence[Run]
    ) -> None:
        """Tune calls it first; nothing is trained yet."""
        self._run = runs[config[NUMBER] - 1]
        self._orders: ray.util.queue.Queue | None = None
        self._heard: Queue[Epoch | Result | Exception] = Queue()
        self._reports = self._train()

    def step(self) -> dict[str, Any]:
        """Tune calls it for each epoch, and no more once the trial is to be stopped."""
        return next(self._reports)

    def cleanup(self) -> None:
        """Tune calls it in the end."""
        if self._orders is not None:
            self._orders.put(Order(0, is_wanted=False))
            self._thread.join()

    def _train(self) -> Iterator[dict[str, Any]]:
        """What Tune is told: all epochs but the last as they come, the last one with the end.

        What an earlier attempt has done is told at once, beside its first epoch, so that all of it
        counts, even if by now ASHA knows so many better trials that it stops this one there.
        """
        metric, num_epochs = self._run.worker_job.metric, self._run.worker_job.training.num_epochs
        earlier = [one for one in earlier_epochs(self._run.config) if one.epoch < num_epochs]
        for epoch in earlier:
            yield _report_of(epoch, metric, known=earlier)
        self._orders = queue_here()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        while isinstance(heard := self._heard.get(), Epoch):
            if heard.epoch < num_epochs:
                yield _report_of(heard, metric)
                self._orders.put(Order(heard.epoch, is_wanted=True))
        if isinstance(heard, BertrayError):
            yield {SCORE: -math.inf, FAILURE: heard, "done": True}
        elif isinstance(heard, Exception):
            raise heard
        else:
            yield {**_report_of(history_of(heard)[-1], metric), IS_LAST: True, "done": True}

    def _work(self) -> None:
        def tell(event: Resumed | Step | Epoch) -> None:
            if isinstance(event, Epoch):
                self._heard.put(event)

        try:
            self._heard.put(train_on_workers(self._run, on_progress=tell, orders=self._orders))
        except Exception as error:
            self._heard.put(error)


class _Watch(tune.Callback):
    """Hands what Tune learns of trials to another thread.

    By number an `Epoch`, then how the trial ended: ``done``, ``stopped``, or an error.
    """

    def __init__(self, events: Queue[Any]) -> None:
        self._events = events

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Tune calls it for each report, after the scheduler has decided what it means."""
        number = trial.config[NUMBER]
        if FAILURE in result:
            self._events.put((number, result[FAILURE]))
            return
        for epoch in result[TOLD]:
            self._events.put((number, Epoch(**epoch)))
        if IS_LAST in result:
            self._events.put((number, "done"))
        elif result.get("done"):
            self._events.put((number, "stopped"))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune calls it when a trial's own process has died, or has met what it did not expect."""
        said = (trial.get_error() or "").strip().splitlines() or ["its process was lost"]
        self._events.put((trial.config[NUMBER], BertrayError(said[-1])))


def make_scheduler(search: Search, *, num_epochs: int, known: Iterable[Trial]) -> TrialScheduler:
    """ASHA, which has seen the trials of an earlier attempt.

    Args:
        search: the config's section.
        num_epochs: of the trial that has most.
        known: what has ended already.
    """
    if search.grace_epochs >= num_epochs:
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    scheduler = ASHAScheduler(
        time_attr=EPOCH,
        metric=SCORE,
        mode="max",
        grace_period=search.grace_epochs,
        reduction_factor=search.reduction_factor,
        max_t=num_epochs - 1,  # after the last one there is nothing to decide
        stop_last_trials=False,
    )
    for trial in known:
        stand_in: Any = SimpleNamespace(trial_id=f"known-{trial.number}")
        scheduler.on_trial_add(None, stand_in)  # type: ignore[arg-type]  # it looks at ids alone
        for epoch, score in enumerate(trial.scores, start=1):
            scheduler.on_trial_result(None, stand_in, {EPOCH: epoch, SCORE: score})  # type: ignore[arg-type]
    return scheduler


def write_trial(record: str, trial: Trial) -> None:
    """Note that a trial has ended."""
    storage.put_json(_place(record, trial.number), asdict(trial), overwrite=True)


def read_trials(record: str, num_trials: int) -> dict[int, Trial]:
    """By number, those that `write_trial` has noted."""
    numbers = range(1, num_trials + 1)
    stored = {number: storage.get_json(_place(record, number)) for number in numbers}
    return {number: Trial.from_json(values) for number, values in stored.items() if values}


def _place(record: str, number: int) -> str:
    return storage.join(record, f"trial-{number:03d}.json")


def _report_of(epoch: Epoch, metric: str, *, known: Sequence[Epoch] = ()) -> dict[str, Any]:
    """What an epoch has come to, for ASHA; and it, or all that are known, for the table."""
    told = [asdict(one) for one in known or [epoch]]
    return {SCORE: score_of(epoch.metrics, metric), EPOCH: epoch.epoch, TOLD: told}
