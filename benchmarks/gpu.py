"""The packed forward against padding on one CUDA card, without Ray or any network.

    python benchmarks/gpu.py [--rows 20000] [--repeats 3] [--compile]
    python benchmarks/gpu.py --device cpu --tiny    # the same code in seconds

BERT-base and BERT-large with random weights, bfloat16; row lengths log-normal with a median of 64
and of 200 tokens, at most 512. Both sides take rows longest first, in batches of the same token
budget; the padded one is plain transformers with its SDPA attention. "Of matmul" is the work of the
real tokens (all of BERT's, without our shortcut in the last layer) over the time, against the best
rate at which this card multiplies large bfloat16 matrices. The last columns compare labels and
probabilities of 1,000 rows with float32.
"""

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from bertray.model.layer import attend_varlen
from bertray.model.packed import pack, plain_logits
from bertray.model.settings import DEFAULT_BATCH_TOKENS
from bertray.text.batching import plan_batches
from bertray.text.ragged import Encoded, offsets_of, take

SHAPES = {
    "BERT-base": {},
    "BERT-large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
COMPARED_ROWS = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-batch-tokens", type=int, default=DEFAULT_BATCH_TOKENS["cuda"])
    parser.add_argument("--compile", action="store_true", help="also try torch.compile")
    parser.add_argument("--tiny", action="store_true", help="a small model and few rows")
    options = parser.parse_args()
    device = torch.device(options.device)
    num_rows = 200 if options.tiny else options.rows
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    rate = matmul_rate(device, size=256 if options.tiny else 8192)
    print(f"{name}; torch {torch.__version__}, transformers {transformers.__version__}; ", end="")
    print(f"bfloat16 matrix products at {rate / 1e12:.1f} TFLOP/s\n")
    print(
        "| model | median length | side | rows/s | tokens/s | padding | of matmul | ratio ", end=""
    )
    print("| same labels | largest difference |\n" + "|---" * 10 + "|")
    for shape, sizes in {"tiny": TINY}.items() if options.tiny else SHAPES.items():
        torch.manual_seed(0)
        config = BertConfig(**sizes, num_labels=2)
        model = BertForSequenceClassification(config).eval()
        for median in (64, 200):
            rows = random_rows(num_rows, median=median)
            first = take(rows, np.arange(min(COMPARED_ROWS, num_rows)))
            exact = partial(plain_logits, copy.deepcopy(model).to(device), first)
            wanted = run(exact, first, options.max_batch_tokens)
            sides = load_sides(model, rows, device=device, compiled=options.compile)
            base = 0.0
            for side, (forward, pads) in sides.items():
                seconds, found, computed = measure(forward, rows, options)
                base = base or seconds
                work = work_of(rows.lengths, config) / seconds / rate
                left, right = (x[: len(wanted)].softmax(-1) for x in (found, wanted))
                same = (left.argmax(-1) == right.argmax(-1)).float().mean()
                padding = 1 - rows.offsets[-1] / computed if pads else 0.0
                print(
                    f"| {shape} | {median} | {side} | {num_rows / seconds:,.0f} "
                    f"| {rows.offsets[-1] / seconds:,.0f} | {padding:.1%} | {work:.0%} "
                    f"| {base / seconds:.2f} | {same:.2%} | {(left - right).abs().max():.1e} |"
                )


def load_sides(
    model: PreTrainedModel, rows: Encoded, *, device: torch.device, compiled: bool
) -> dict[str, tuple[Callable[[np.ndarray], Tensor], bool]]:
    """Forward passes in bfloat16: row indices to logits on the device; and whether each pads."""
    packed = pack(copy.deepcopy(model))
    assert packed is not None
    packed = packed.lower(torch.bfloat16).to(device)
    if device.type == "cuda":
        packed.attend = attend_varlen
    plain = copy.deepcopy(model).to(device, dtype=torch.bfloat16)
    sides = {
        "padded SDPA": (lambda batch: plain_logits(plain, rows, batch), True),
        "packed": (lambda batch: packed.run(rows, batch, device=device), False),
    }
    if compiled:
        faster = copy.copy(packed)
        faster.forward = torch.compile(packed.forward, dynamic=True)
        sides["packed, compiled"] = (lambda batch: faster.run(rows, batch, device=device), False)
    return sides


def measure(
    forward: Callable[[np.ndarray], Tensor], rows: Encoded, options: argparse.Namespace
) -> tuple[float, Tensor, int]:
    """Median seconds over all rows, host work included; logits; tokens computed if padded."""
    seconds = []
    for _ in range(options.repeats + 1):  # the first warms up
        start = time.perf_counter()
        logits = run(forward, rows, options.max_batch_tokens)
        seconds.append(time.perf_counter() - start)
    plan = plan_batches(rows.lengths, max_tokens=options.max_batch_tokens)
    computed = sum(len(batch) * int(rows.lengths[batch].max()) for batch in plan)
    return statistics.median(seconds[1:]), logits, computed


@torch.inference_mode()
def run(forward: Callable[[np.ndarray], Tensor], rows: Encoded, max_tokens: int) -> Tensor:
    """Logits of all rows on the host, which waits but once."""
    plan = plan_batches(rows.lengths, max_tokens=max_tokens)
    found = torch.cat([forward(batch) for batch in plan]).float().cpu()
    logits = torch.empty_like(found)
    logits[torch.from_numpy(np.concatenate(plan))] = found
    return logits


def random_rows(num_rows: int, *, median: int) -> Encoded:
    """Random ids in rows of log-normal length."""
    chance = np.random.default_rng(0)
    lengths = np.exp(chance.normal(np.log(median), 0.7, num_rows)).clip(3, 512).astype(np.int64)
    ids = chance.integers(1000, 30_000, int(lengths.sum()), dtype=np.uint16)
    return Encoded(ids, offsets_of(lengths), None)


def work_of(lengths: np.ndarray, config: BertConfig) -> float:
    """Floating-point operations of BERT's matrix products over these rows."""
    hidden, inner = config.hidden_size, config.intermediate_size
    per_token = 2 * (4 * hidden**2 + 2 * hidden * inner)  # projections and feed-forward
    per_pair = 4 * hidden  # scores and their use
    return config.num_hidden_layers * float((per_token * lengths + per_pair * lengths**2).sum())


def matmul_rate(device: torch.device, *, size: int) -> float:
    """Floating-point operations a second of large bfloat16 matrix products; the best of three."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    rates = []
    for _ in range(4):
        start = time.perf_counter()
        for _ in range(20):
            product = left @ right
        float(product[0, 0])  # waits
        rates.append(20 * 2 * size**3 / (time.perf_counter() - start))
    return max(rates[1:])


if __name__ == "__main__":
    main()
