"""Make a masked language model where none can be fetched, for `augmentation.py --masked-model`.

    python benchmarks/masked_model.py FOLDER [--steps 500]

MiniLM, as a package ships it, has no head that guesses words. This gives it one and trains both on
Rotten Tomatoes without the labels, the rows held out by `augmentation.py` left out. It prints how
well words of those are guessed. A model of a hub, trained for weeks, guesses better.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from fine_tuning import MAX_LENGTH, NUM_HELD_OUT, encoder_folder, read_reviews
from torch import Tensor
from transformers import (
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)
from transformers.data.data_collator import DataCollator

from bertray.model.pretrained import load_tokenizer

BATCH_SIZE, LEARNING_RATE, TOLD_EVERY = 64, 3e-4, 100
IGNORED = -100  # the label of a token that was not hidden


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    encoder = encoder_folder()
    tokenizer = load_tokenizer(encoder)
    model = BertForMaskedLM.from_pretrained(encoder)
    texts, _ = read_reviews()
    hide = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, options.steps // 20, options.steps)
    start = time.perf_counter()
    batches = batches_of(texts[:-NUM_HELD_OUT], tokenizer, hide)
    for step in range(1, options.steps + 1):
        loss, _ = guess(model, next(batches))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % TOLD_EVERY == 0:
            print(f"step {step}: loss {loss:.2f}, {time.perf_counter() - start:.0f} s", flush=True)
    model.eval()
    batches = batches_of(texts[-NUM_HELD_OUT:], tokenizer, hide)
    with torch.inference_mode():
        found = [guess(model, next(batches)) for _ in range(NUM_HELD_OUT // BATCH_SIZE)]
    loss, right = (torch.stack(values).mean() for values in zip(*found, strict=True))
    print(f"rows held out: loss {loss:.2f}, {right:.0%} of the words guessed at once")
    model.save_pretrained(options.folder)
    tokenizer.save_pretrained(options.folder)


def batches_of(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, hide: DataCollator
) -> Iterator[dict[str, Tensor]]:
    """Texts over and over, each time in another order and with other words hidden."""
    while True:
        order = torch.randperm(len(texts)).tolist()
        for first in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            chosen = [texts[place] for place in order[first : first + BATCH_SIZE]]
            encoded = tokenizer(chosen, truncation=True, max_length=MAX_LENGTH)["input_ids"]
            yield hide([{"input_ids": ids} for ids in encoded])


def guess(model: BertForMaskedLM, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The mean loss of the hidden tokens, and the share of them guessed; only they are computed."""
    labels_BL = inputs["labels"]
    hidden_BLD = model.bert(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
    ).last_hidden_state
    logits_MV = model.cls(hidden_BLD[labels_BL != IGNORED])
    labels_M = labels_BL[labels_BL != IGNORED]
    right = (logits_MV.argmax(dim=-1) == labels_M).float().mean()
    return torch.nn.functional.cross_entropy(logits_MV, labels_M), right


if __name__ == "__main__":
    main()
