"""Steps learn, say what they did, and stop at a loss that is no number."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import EPOCHS, GLOBAL_BATCH, NUM_ROWS, WEIGHTED, Trainer, in_windows, without_dropout
from torch.optim.lr_scheduler import LambdaLR

from bertray.config import Optim
from bertray.train.base import Base
from bertray.train.examples import Examples
from bertray.train.loss import BinaryCrossEntropy
from bertray.train.precision import Name, Precision
from bertray.train.steps import NonFiniteLossError, predict, split_rows


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
    np.testing.assert_allclose(*losses, rtol=0.03, atol=0.01)
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
    assert step.grad_norm is None
    assert torch.equal(weight, before)
    assert trainer.precision.state_dict()["scale"] == 2.0**29
    assert trainer.schedule.last_epoch == 0  # its rate stays as it is, too
    for number in range(25):
        (step,) = trainer.epoch(number)
    assert step.grad_norm is not None
    assert not torch.equal(weight, before)


def test_gradients_that_overflow_at_any_scale_end_the_training(
    base: Base, make_examples: Callable[..., Examples]
) -> None:
    trainer = Trainer(base, make_examples(GLOBAL_BATCH), precision="float16")
    trainer.precision.load_state_dict({**trainer.precision.state_dict(), "scale": 2.0**-14})
    trainer.bare.classifier.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NonFiniteLossError, match=r"step 1 of .*float16 .*take bfloat16"):
        trainer.epoch(0)


def test_a_training_all_of_whose_steps_overflow_is_not_done(
    base: Base, make_examples: Callable[..., Examples]
) -> None:
    trainer = Trainer(base, make_examples(GLOBAL_BATCH), precision="float16")
    trainer.precision.load_state_dict({**trainer.precision.state_dict(), "scale": 2.0**40})
    for number in range(EPOCHS - 1):
        (step,) = trainer.epoch(number)
        assert step.grad_norm is None
    with pytest.raises(NonFiniteLossError, match=r"step (\d+) of \1: .*float16 .*none was taken"):
        trainer.epoch(EPOCHS - 1)


def test_a_resumed_float16_training_goes_on_with_the_scale_it_had(
    base: Base, make_examples: Callable[..., Examples], tmp_path: Path
) -> None:
    whole = Trainer(base, make_examples(NUM_ROWS), precision="float16")
    whole.precision.load_state_dict({**whole.precision.state_dict(), "scale": 2.0**19})
    assert {step.grad_norm is None for step in whole.epoch(0)} == {True, False}
    whole.save(tmp_path)
    resumed = Trainer(base, whole.examples, precision="float16", checkpoint=tmp_path)
    assert resumed.precision.state_dict() == whole.precision.state_dict()
    assert resumed.epoch(1) == whole.epoch(1)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_large_gradient_is_clipped_before_it_moves_the_weights(
    base: Base, make_examples: Callable[..., Examples], precision: Name
) -> None:
    trainer = Trainer(base, make_examples(GLOBAL_BATCH), precision=precision)
    trainer.bare.classifier.weight.data *= 10
    trainer.precision.load_state_dict({**trainer.precision.state_dict(), "scale": 64.0})
    trainer.num_steps = EPOCHS
    # Plain descent with a rate of 1 moves by the gradient itself.
    trainer.optimizer = torch.optim.SGD(trainer.bare.parameters(), lr=1.0)
    trainer.schedule = LambdaLR(trainer.optimizer, lambda step: 1.0)
    before = [value.detach().clone() for value in trainer.bare.parameters()]
    (step,) = trainer.epoch(0)
    assert step.grad_norm is not None
    assert step.grad_norm > 10
    pairs = zip(trainer.bare.parameters(), before, strict=True)
    moved = torch.stack([(value.detach() - was).norm() for value, was in pairs]).norm()
    assert float(moved) == pytest.approx(1.0, rel=1e-3)


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
    assert all(np.isfinite([step.loss, step.grad_norm or np.nan]).all() for step in steps)
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


def test_of_a_step_without_a_number_the_rows_of_the_pass_that_has_none_are_named(
    base: Base, make_examples: Callable[..., Examples]
) -> None:
    trainer = Trainer(base, make_examples(GLOBAL_BATCH))
    trainer.accumulation_steps = GLOBAL_BATCH  # a row a pass
    guilty = 2
    ids, offsets = trainer.examples.encoded.input_ids, trainer.examples.encoded.offsets
    ids[offsets[guilty] + 1] = token = 41  # that no other row has
    trainer.bare.bert.embeddings.word_embeddings.weight.data[token] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"Rows: 1006\. Lower"):
        trainer.epoch(0)


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
    first.save(tmp_path)
    second = Trainer(base, examples, checkpoint=tmp_path)
    assert second.epoch(1, slice(num_steps, None)) == expected[0][num_steps:]
    assert [second.epoch(number) for number in range(2, EPOCHS)] == expected[1:]
