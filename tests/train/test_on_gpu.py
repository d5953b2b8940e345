"""One CUDA card: the steps of a training, held against the CPU's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import EPOCHS, GLOBAL_BATCH, NUM_ROWS, Trainer, without_dropout

from bertray.config import Optim
from bertray.train.base import Base
from bertray.train.examples import Examples
from bertray.train.precision import Precision

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]

CUDA = torch.device("cuda")


def test_float32_takes_the_steps_of_the_cpu(
    base: Base, make_examples: Callable[..., Examples]
) -> None:
    examples = make_examples(NUM_ROWS)
    there = without_dropout(Trainer(base, examples))
    here = without_dropout(Trainer(base, examples, device=CUDA))
    here.precision = Precision("float32", CUDA)
    for number in range(EPOCHS):
        wanted, found = ([step.loss for step in one.epoch(number)] for one in (there, here))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    np.testing.assert_allclose(here.predict(), there.predict(), atol=1e-3)


def test_bfloat16_is_what_a_card_takes_by_itself_and_learns(
    base: Base, make_examples: Callable[..., Examples]
) -> None:
    trainer = without_dropout(Trainer(base, make_examples(GLOBAL_BATCH), device=CUDA))
    assert trainer.precision.dtype == torch.bfloat16
    trainer.num_steps = 100
    trainer.start(Optim(learning_rate=3e-3))
    losses = [trainer.epoch(number)[0].loss for number in range(40)]
    assert losses[-1] < 0.2 * losses[0]
    assert {value.dtype for value in trainer.bare.parameters()} == {torch.float32}


def test_gradients_that_overflow_float16_take_no_step_and_lower_the_scale(
    base: Base, make_examples: Callable[..., Examples]
) -> None:
    trainer = without_dropout(Trainer(base, make_examples(GLOBAL_BATCH), device=CUDA))
    trainer.num_steps = 120
    trainer.start(Optim())
    trainer.precision = Precision("float16", CUDA)
    trainer.precision.load_state_dict({**trainer.precision.state_dict(), "scale": 2.0**30})
    before = trainer.bare.classifier.weight.detach().clone()
    (step,) = trainer.epoch(0)
    assert step.grad_norm is None
    assert torch.equal(trainer.bare.classifier.weight, before)
    for number in range(1, 60):
        (step,) = trainer.epoch(number)
    assert step.grad_norm is not None
    assert not torch.equal(trainer.bare.classifier.weight, before)


def test_a_checkpoint_goes_on_where_it_was_left(
    base: Base, make_examples: Callable[..., Examples], tmp_path: Path
) -> None:
    examples = make_examples(NUM_ROWS)
    whole = Trainer(base, examples, device=CUDA)
    whole.epoch(0)
    whole.save(tmp_path / "checkpoint")
    resumed = Trainer(base, examples, device=CUDA, checkpoint=tmp_path / "checkpoint")
    wanted, found = ([step.loss for step in one.epoch(1)] for one in (whole, resumed))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3)
