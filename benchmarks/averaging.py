"""Whether averaged weights (EMA) do better than the last: accuracy on real reviews, CPU, no Ray.

    python benchmarks/averaging.py [--rows 3000] [--epochs 2] [--seeds 3]

One training of MiniLM on Rotten Tomatoes for each seed. Beside it stand exponential moving averages
of its weights after each step, of several decays; all of them are measured on the last 1,000 rows.
"""

import argparse
import os
import statistics
from importlib.metadata import version

import torch
from fine_tuning import (
    MAX_LENGTH,
    NUM_HELD_OUT,
    accuracy_of,
    as_examples,
    encoder_folder,
    fit,
    read_reviews,
)
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bertray.config import TrainModel
from bertray.train.base import open_base

DECAYS = (0.9, 0.98, 0.99, 0.995)


class Averages(dict[float, AveragedModel]):
    """Averaged models by decay, each from the first step on."""

    def __call__(self, model: torch.nn.Module) -> None:
        """Take in the weights after a step."""
        for decay in DECAYS:
            if decay not in self:
                self[decay] = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
            self[decay].update_parameters(model)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=3_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = ("torch", "transformers")
    print(f"{options.threads} threads;", ", ".join(f"{name} {version(name)}" for name in names))
    base = open_base(TrainModel(base=str(encoder_folder()), max_length=MAX_LENGTH))
    texts, label_ids = read_reviews()
    training = as_examples(texts[: options.rows], label_ids[: options.rows], base)
    held_out = as_examples(texts[-NUM_HELD_OUT:], label_ids[-NUM_HELD_OUT:], base)
    found: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        averages = Averages()
        last = fit(training, base, num_epochs=options.epochs, seed=seed, after_step=averages)
        models = {"last": last, **{f"decay {key}": one.module for key, one in averages.items()}}
        for name, one in models.items():
            found.setdefault(name, []).append(accuracy_of(one, held_out))
            print(f"seed {seed}, {name}: {found[name][-1]:.3f}", flush=True)
    print("\n| weights | accuracy | each seed |\n|---|---|---|")
    for name, values in found.items():
        each = ", ".join(f"{one:.3f}" for one in values)
        print(f"| {name} | {statistics.mean(values):.3f} | {each} |")


if __name__ == "__main__":
    main()
