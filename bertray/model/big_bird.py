"""BigBird, whose attention is sparse where rows are long enough for it.

At the first batch that is not, transformers leaves sparse attention for good, and all long rows
after it have other numbers. Here each batch has the attention of its own length.
"""

from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_block_sparse(config: PretrainedConfig) -> bool:
    """Whether a batch's longest row decides how the model attends."""
    return getattr(config, "attention_type", None) == "block_sparse"


def choose_attention_by_batch(model: "PreTrainedModel") -> None:
    """Let a model that `is_block_sparse` take each batch as if it were its first."""
    encoder: Any = next(part for part in model.modules() if hasattr(part, "set_attention_type"))
    config = model.config
    # (transformers, modeling_big_bird.py, BigBirdModel.forward)
    too_short = (5 + 2 * config.num_random_blocks) * config.block_size

    def choose(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_ids = args[0] if args else kwargs["input_ids"]
        is_sparse = input_ids.shape[1] > too_short
        encoder.set_attention_type("block_sparse" if is_sparse else "original_full")

    encoder.register_forward_pre_hook(choose, with_kwargs=True)
