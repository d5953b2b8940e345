"""N ranks take the same steps as one with the N-fold batch; a loss that is no number stops all."""

import faulthandler
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import multiprocessing

from bertray.config import Optim
from bertray.schema import Task
from bertray.text.long import Aggregate
from bertray.train.base import Base, load_base
from bertray.train.examples import Examples
from bertray.train.loop import load_checkpoint, load_state, save_state
from bertray.train.loss import CROSS_ENTROPY, BinaryCrossEntropy, CrossEntropy, Loss
from bertray.train.optim import make_optimizer, make_schedule
from bertray.train.plan import plan_epoch
from bertray.train.precision import Precision
from bertray.train.steps import (
    NonFiniteLossError,
    Step,
    predict,
    split_rows,
    train_steps,
)

LABELS = ("no", "yes")
GLOBAL_BATCH = 6
NUM_ROWS = 43  # 7 full batches and one of a single row, so a second rank has none
EPOCHS = 3
HANGS_AFTER_S = 200


class Trainer:
    """One rank's model and optimizer, without Ray."""

    def __init__(self, base: Base, examples: Examples, *, rank: int = 0, world_size: int = 1):
        self.rank, self.world_size, self.examples = rank, world_size, examples
        self.loss: Loss = CROSS_ENTROPY
        self.accumulation_steps = 1
        self.aggregate: Aggregate = "mean"
        self.precision = Precision("auto", torch.device("cpu"))
        self.bare = load_base(base, labels=LABELS, seed=5)
        self.model: Any = self.bare
        self.num_steps = EPOCHS * -(-len(examples) // GLOBAL_BATCH)
        self.start(Optim(learning_rate=1e-3))

    def start(self, optim: Optim) -> None:
        self.optimizer = make_optimizer(self.bare, optim)
        self.schedule = make_schedule(self.optimizer, optim, num_steps=self.num_steps)

    def epoch(self, number: int, steps: slice = slice(None)) -> list[Step]:
        """Some steps of an epoch; a resumed training begins within one."""
        plan = plan_epoch(
            self.examples.lengths, global_batch_size=GLOBAL_BATCH, seed=0, epoch=number
        )
        taken = train_steps(
            self.model,
            self.optimizer,
            self.schedule,
            self.examples,
            plan=plan[steps],
            steps_done=number * self.num_steps // EPOCHS + (steps.start or 0),
            num_steps=self.num_steps,
            seed=0,
            max_grad_norm=1.0,
            pad_token_id=0,
            rank=self.rank,
            world_size=self.world_size,
            precision=self.precision,
            loss=self.loss,
            aggregate=self.aggregate,
            accumulation_steps=self.accumulation_steps,
        )
        return list(taken)

    def predict(self, task: Task = "single_label") -> np.ndarray:
        return predict(
            self.model,
            self.examples.encoded,
            num_windows=self.examples.num_windows,
            aggregate=self.aggregate,
            precision=self.precision,
            num_labels=2,
            max_tokens=64,
            pad_token_id=0,
            rank=self.rank,
            world_size=self.world_size,
            task=task,
        )


def without_dropout(trainer: Trainer) -> Trainer:
    for module in trainer.bare.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    return trainer


WEIGHTED = CrossEntropy(label_smoothing=0.1, focal_gamma=2.0, class_weights=(0.5, 3.0))


def weighted(trainer: Trainer, *, accumulation_steps: int) -> list[float]:
    """The losses of an epoch more, with all that a loss can have."""
    trainer.loss, trainer.accumulation_steps = WEIGHTED, accumulation_steps
    return [step.loss for step in trainer.epoch(0)]


def _rank(rank: int, base: Base, examples: Examples, folder: str) -> None:
    """What a process of the two-rank run does; leaves its losses and predictions in a file."""
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    trainer = without_dropout(Trainer(base, examples, rank=rank, world_size=2))
    trainer.model = torch.nn.parallel.DistributedDataParallel(trainer.bare)
    losses = [step.loss for epoch in range(EPOCHS) for step in trainer.epoch(epoch)]
    losses += weighted(trainer, accumulation_steps=2)
    np.savez(f"{folder}/rank{rank}.npz", losses=losses, probabilities=trainer.predict())
    next(trainer.bare.parameters()).data.fill_(float("nan"))
    try:
        trainer.epoch(0)
    except NonFiniteLossError as error:
        Path(f"{folder}/rank{rank}.txt").write_text(str(error))
    dist.barrier()  # neither leaves while the other still listens
    dist.destroy_process_group()
    os._exit(0)  # without an interpreter's end, which threads of torch could hold up


@pytest.mark.parametrize("windowed", [False, True])
def test_two_ranks_take_the_steps_of_one_with_the_double_batch(
    base: Base, make_examples: Callable[..., Examples], tmp_path: Path, windowed: bool
) -> None:
    examples = in_windows(make_examples) if windowed else make_examples(NUM_ROWS)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    multiprocessing.spawn(_rank, (base, examples, str(tmp_path)), nprocs=2)
    one = without_dropout(Trainer(base, examples))
    losses = [step.loss for epoch in range(EPOCHS) for step in one.epoch(epoch)]
    assert len(losses) == 24
    losses += weighted(one, accumulation_steps=1)
    for rank in (0, 1):
        two = np.load(tmp_path / f"rank{rank}.npz")
        np.testing.assert_allclose(two["losses"], losses, rtol=0, atol=1e-5)
        np.testing.assert_allclose(two["probabilities"], one.predict(), rtol=0, atol=1e-5)
        assert "the optimizer step was not taken" in (tmp_path / f"rank{rank}.txt").read_text()


def test_independent_labels_are_learnt_whatever_the_passes(
    base: Base, make_examples: Callable[..., Examples]
) -> None:
    examples = make_examples(GLOBAL_BATCH)
    has_label = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [1, 0], [0, 1]], bool)
    whole, cut = (
        without_dropout(Trainer(base, replace(examples, targets=has_label))) for _ in range(2)
    )
    cut.accumulation_steps = 4
    losses: list[list[float]] = [[], []]
    for trainer, found in zip((whole, cut), losses, strict=True):
        trainer.loss = BinaryCrossEntropy(focal_gamma=1.0, positive_weights=(2.0, 1.0))
        trainer.num_steps = 100
        trainer.start(Optim(learning_rate=3e-3))
        found += [trainer.epoch(number)[0].loss for number in range(30)]
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-4)
    assert losses[0][-1] < 0.2 * losses[0][0]
    probabilities = whole.predict(task="multi_label")
    assert ((probabilities >= 0.5) == has_label).all()


def test_accumulated_passes_take_the_steps_of_whole_batches(
    base: Base, make_examples: Callable[..., Examples]
) -> None:
    examples = make_examples(NUM_ROWS)
    whole, cut = (without_dropout(Trainer(base, examples)) for _ in range(2))
    cut.accumulation_steps = 4
    for number in range(EPOCHS):
        losses, others = ([step.loss for step in one.epoch(number)] for one in (whole, cut))
        np.testing.assert_allclose(losses, others, rtol=0, atol=1e-5)


def test_lower_precision_learns_and_keeps_its_weights_in_float32(
    base: Base, make_examples: Callable[..., Examples]
) -> None:
    exact, lower = (without_dropout(Trainer(base, make_examples(NUM_ROWS))) for _ in range(2))
    lower.precision = Precision("bfloat16", torch.device("cpu"))
    losses = [[step.loss for step in one.epoch(0)] for one in (exact, lower)]
    np.testing.assert_allclose(*losses, rtol=0.03)
    assert losses[0] != losses[1]
    assert {value.dtype for value in lower.bare.parameters()} == {torch.float32}
    np.testing.assert_allclose(exact.predict(), lower.predict(), atol=0.08)


def test_gradients_that_overflow_float16_take_no_step_and_lower_the_scale(
    base: Base, make_examples: Callable[..., Examples]
) -> None:
    trainer = without_dropout(Trainer(base, make_examples(GLOBAL_BATCH)))
    trainer.num_steps = 120
    trainer.start(Optim())
    trainer.precision = Precision("float16", torch.device("cpu"))
    trainer.precision.load_state_dict({**trainer.precision.state_dict(), "scale": 2.0**30})
    weight = trainer.bare.classifier.weight
    before = weight.detach().clone()
    (step,) = trainer.epoch(0)
    assert np.isfinite(step.loss)
    assert not np.isfinite(step.grad_norm)
    assert torch.equal(weight, before)
    assert trainer.precision.state_dict()["scale"] == 2.0**29
    for number in range(25):
        (step,) = trainer.epoch(number)
    assert np.isfinite(step.grad_norm)
    assert not torch.equal(weight, before)


def test_activations_that_are_computed_again_give_the_same_steps(
    base: Base, make_examples: Callable[..., Examples]
) -> None:
    examples = make_examples(NUM_ROWS)
    kept, again = (Trainer(base, examples) for _ in range(2))
    again.bare.gradient_checkpointing_enable({"use_reentrant": False})
    losses = [[step.loss for step in one.epoch(0)] for one in (kept, again)]
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-5)


def test_every_step_says_what_it_did(base: Base, make_examples: Callable[..., Examples]) -> None:
    examples = make_examples(NUM_ROWS)
    trainer = Trainer(base, examples)
    steps = [*trainer.epoch(0), *trainer.epoch(1)]
    assert [step.step for step in steps] == list(range(1, 17))
    assert sum(step.num_rows for step in steps) == 2 * NUM_ROWS
    assert sum(step.num_tokens for step in steps) == 2 * examples.encoded.offsets[-1]
    assert all(np.isfinite([step.loss, step.grad_norm]).all() for step in steps)
    assert steps[0].learning_rate == 0
    assert max(step.learning_rate for step in steps) <= 1e-3


def test_training_learns(base: Base, make_examples: Callable[..., Examples]) -> None:
    trainer = without_dropout(Trainer(base, make_examples(6)))
    trainer.num_steps = 60
    trainer.start(Optim(learning_rate=3e-3))
    losses = [trainer.epoch(number)[0].loss for number in range(25)]
    assert losses[-1] < 0.2 * losses[0]


def test_a_loss_that_is_no_number_stops_before_the_optimizer_step_and_names_its_rows(
    base: Base, make_examples: Callable[..., Examples]
) -> None:
    trainer = Trainer(base, make_examples(4))
    weight = trainer.bare.classifier.weight
    weight.data[0, 0] = float("inf")
    before = weight.detach().clone()
    with pytest.raises(
        NonFiniteLossError, match=r"step 1 of 3.*1000.*optim\.learning_rate"
    ) as caught:
        trainer.epoch(0)
    assert caught.value.exit_code == 2
    assert torch.equal(trainer.bare.classifier.weight, before)


def test_predictions_that_are_no_numbers_are_an_error(
    base: Base, make_examples: Callable[..., Examples]
) -> None:
    trainer = Trainer(base, make_examples(4))
    trainer.bare.classifier.bias.data.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="validation rows"):
        trainer.predict()


def test_predictions_do_not_depend_on_the_batches(
    base: Base, make_examples: Callable[..., Examples]
) -> None:
    trainer = Trainer(base, make_examples(20))
    together = trainer.predict()
    trainer.examples = make_examples(20)
    one_by_one = predict(
        trainer.model,
        trainer.examples.encoded,
        precision=trainer.precision,
        num_labels=2,
        max_tokens=20,
        pad_token_id=0,
        rank=0,
        world_size=1,
    )
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)
    np.testing.assert_allclose(together.sum(axis=1), 1)


def in_windows(make_examples: Callable[..., Examples], num_rows: int = NUM_ROWS) -> Examples:
    """Rows of one to four windows."""
    counts = np.random.default_rng(1).integers(1, 5, num_rows)
    rows, windows = make_examples(num_rows), make_examples(int(counts.sum()))
    ends = np.append(0, np.cumsum(counts))
    return Examples(windows.encoded, rows.targets, rows.row_ids, ends)


def test_the_loss_of_rows_in_windows_is_that_of_their_pooled_logits(
    base: Base, make_examples: Callable[..., Examples]
) -> None:
    examples = in_windows(make_examples, GLOBAL_BATCH)
    for aggregate in ("mean", "max"):
        trainer = without_dropout(Trainer(base, examples))
        trainer.aggregate, trainer.loss = aggregate, WEIGHTED
        encoded, windows = examples.encoded, examples.windows
        assert windows is not None
        logits = []
        with torch.no_grad():
            for first, last in pairwise(windows):
                ends = zip(encoded.offsets[first:last], encoded.offsets[first + 1 :], strict=False)
                rows = [torch.tensor(encoded.input_ids[start:end]).long() for start, end in ends]
                each = torch.cat([trainer.bare(row[None]).logits for row in rows])
                logits.append(each.mean(dim=0) if aggregate == "mean" else each.amax(dim=0))
        wanted = WEIGHTED.of_rows(torch.stack(logits), torch.tensor(examples.targets))
        probabilities = torch.stack(logits).double().softmax(dim=-1)
        np.testing.assert_allclose(trainer.predict(), probabilities, atol=1e-5)
        (step,) = trainer.epoch(0)
        wanted = wanted / WEIGHTED.num_rows(examples.targets)
        assert step.loss == pytest.approx(float(wanted), abs=1e-5)
        assert step.num_rows == GLOBAL_BATCH
        assert step.num_tokens == len(encoded.input_ids)


def test_every_window_of_a_row_is_trained_on(
    base: Base, make_examples: Callable[..., Examples]
) -> None:
    examples = in_windows(make_examples, GLOBAL_BATCH)
    trainer = without_dropout(Trainer(base, examples))
    before = trainer.epoch(0)[0].loss
    for sequence in range(len(examples.encoded)):
        ids = examples.encoded.input_ids.copy()
        place = examples.encoded.offsets[sequence]
        ids[place] = 41  # the token whose last state the head sees, and no other row has
        changed = replace(examples, encoded=replace(examples.encoded, input_ids=ids))
        other = without_dropout(Trainer(base, changed))
        assert other.epoch(0)[0].loss != before


@given(counts=st.lists(st.integers(1, 16), min_size=1, max_size=40), num_parts=st.integers(1, 9))
def test_passes_hold_each_row_once_and_little_more_than_their_share_of_sequences(
    counts: list[int], num_parts: int
) -> None:
    rows = np.random.default_rng(0).permutation(len(counts))
    parts = np.array_split(rows, min(num_parts, len(rows)))
    passes = split_rows(rows, np.array(counts), num_parts=num_parts)
    assert np.concatenate(passes).tolist() == rows.tolist()
    longest = max(len(part) for part in parts)
    assert all(sum(counts[row] for row in some[:-1]) < longest for some in passes)
    whole = split_rows(rows, np.ones(len(rows), int), num_parts=num_parts)
    assert [some.tolist() for some in whole] == [part.tolist() for part in parts]


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("num_steps", [0, 3], ids=["between epochs", "within one"])
def test_resumed_training_is_uninterrupted_training(
    base: Base,
    make_examples: Callable[..., Examples],
    tmp_path: Path,
    windowed: bool,
    num_steps: int,
) -> None:
    examples = in_windows(make_examples) if windowed else make_examples(NUM_ROWS)
    whole = Trainer(base, examples)  # with dropout
    expected = [whole.epoch(number) for number in range(EPOCHS)][1:]

    first = Trainer(base, examples)
    first.epoch(0)
    first.epoch(1, slice(0, num_steps))
    save_state(tmp_path, [], first.bare, first.optimizer, first.schedule, precision=first.precision)
    second = Trainer(base, examples)
    second.model = second.bare = load_checkpoint(tmp_path, base)
    second.start(Optim(learning_rate=1e-3))
    state = load_state(tmp_path, second.optimizer, second.schedule, second.precision)
    assert state == ([], 0.0)
    assert second.epoch(1, slice(num_steps, None)) == expected[0][num_steps:]
    assert [second.epoch(number) for number in range(2, EPOCHS)] == expected[1:]
