"""The packed forward against padding on one CUDA card, without Ray or any network.

    python benchmarks/gpu.py [--rows 20000] [--repeats 3] [--dtype bfloat16]
    python benchmarks/gpu.py --device cpu --tiny    # the same code in seconds

BERT-base and BERT-large with random weights, in float16 as the engine has it; row lengths
log-normal with a median of 64 and of 200 tokens, at most 512. All sides take rows longest first.
The padded ones are plain transformers with its SDPA attention: 32 rows a batch, as most people have
it, and batches of our token budget. "Of matmul" is the work of the real tokens (all of BERT's,
without our shortcut in the last layer) over the time, against the best rate at which this card
multiplies large matrices of that type. The last columns compare labels and probabilities of 1,000
rows with float32.
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

from bertray.model.operations import fused_operations
from bertray.model.packed import pack, plain_logits
from bertray.model.rate import forward_flops, matmul_rate
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
Forward = Callable[[np.ndarray], Tensor]
Plan = list[np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-batch-tokens", type=int, default=DEFAULT_BATCH_TOKENS["cuda"])
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16"])
    parser.add_argument("--tiny", action="store_true", help="a small model and few rows")
    options = parser.parse_args()
    device = torch.device(options.device)
    num_rows = 200 if options.tiny else options.rows
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    dtype: torch.dtype = getattr(torch, options.dtype)
    rate = matmul_rate(device, dtype)
    print(f"{name}; torch {torch.__version__}, transformers {transformers.__version__}; ", end="")
    print(f"{options.dtype} matrix products at {rate / 1e12:.1f} TFLOP/s\n")
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
            wanted = run(exact, plan_batches(first.lengths, max_tokens=options.max_batch_tokens))
            flops = forward_flops(config, rows.lengths)
            base = 0.0
            for side, forward, plan, pads in load_sides(model, rows, options):
                seconds, found = measure(forward, plan, repeats=options.repeats)
                base = base or seconds
                left, right = (x[: len(wanted)].softmax(-1) for x in (found, wanted))
                same = (left.argmax(-1) == right.argmax(-1)).float().mean()
                computed = sum(len(batch) * int(rows.lengths[batch].max()) for batch in plan)
                padding = 1 - rows.offsets[-1] / computed if pads else 0.0
                print(
                    f"| {shape} | {median} | {side} | {num_rows / seconds:,.0f} "
                    f"| {rows.offsets[-1] / seconds:,.0f} | {padding:.1%} "
                    f"| {flops / seconds / rate:.0%} | {base / seconds:.2f} | {same:.2%} "
                    f"| {(left - right).abs().max():.1e} |",
                    flush=True,
                )


def load_sides(
    model: PreTrainedModel, rows: Encoded, options: argparse.Namespace
) -> list[tuple[str, Forward, Plan, bool]]:
    """Name, forward pass from row indices to logits, batches, and whether it pads."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    packed = pack(copy.deepcopy(model))
    assert packed is not None
    packed = packed.lower(dtype).to(device)
    if device.type == "cuda":
        packed.operations = fused_operations(has_bias=packed.has_bias)
    plain = copy.deepcopy(model).to(device, dtype=dtype)
    ordered = np.argsort(-rows.lengths, kind="stable")
    few = [ordered[start : start + 32] for start in range(0, len(ordered), 32)]
    many = plan_batches(rows.lengths, max_tokens=options.max_batch_tokens)
    padded, ours = partial(plain_logits, plain, rows), partial(packed.run, rows, device=device)
    return [
        ("padded SDPA, 32 rows", padded, few, True),
        ("padded SDPA, token budget", padded, many, True),
        ("packed", ours, many, False),
    ]


def measure(forward: Forward, plan: Plan, *, repeats: int) -> tuple[float, Tensor]:
    """Median seconds over all rows, host work included; and logits."""
    seconds = []
    for _ in range(repeats + 1):  # the first warms up
        start = time.perf_counter()
        logits = run(forward, plan)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), logits


@torch.inference_mode()
def run(forward: Forward, plan: Plan) -> Tensor:
    """Logits of all rows on the host, which waits but once."""
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


if __name__ == "__main__":
    main()
