"""Families whose numbers hang on more than the rows of a batch, made to hang on these alone.

BigBird attends sparsely where rows are long enough for it. At the first batch that is not,
transformers leaves sparse attention for good, and all long rows after it have other numbers: here
each batch has the attention of its own length. Reformer draws its hashes anew for each batch.
"""

from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def attends_by_length(config: PretrainedConfig) -> bool:
    """Whether a batch's longest row decides how the model attends."""
    return _is_sparse(config) or config.model_type == "reformer"


def make_steady(model: "PreTrainedModel") -> None:
    """Let a model take each batch as if it were its first; others than those stay as they are."""
    choose_attention_by_batch(model)
    hashing = [part for part in model.modules() if getattr(part, "hash_seed", 0) is None]
    for seed, layer in enumerate(hashing):  # each layer hashes in its own way
        layer.hash_seed = seed  # type: ignore[assignment]


def _is_sparse(config: PretrainedConfig) -> bool:
    return getattr(config, "attention_type", None) == "block_sparse"


def choose_attention_by_batch(model: "PreTrainedModel") -> None:
    """Let BigBird do so alone. In training hashes stay drawn, as their seeds are dropout's too."""
    if not _is_sparse(model.config):
        return
    encoder: Any = next(part for part in model.modules() if hasattr(part, "set_attention_type"))
    config = model.config
    # (transformers, modeling_big_bird.py, BigBirdModel.forward)
    too_short = (5 + 2 * config.num_random_blocks) * config.block_size

    def choose(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_ids = args[0] if args else kwargs["input_ids"]
        is_sparse = input_ids.shape[1] > too_short
        encoder.set_attention_type("block_sparse" if is_sparse else "original_full")

    encoder.register_forward_pre_hook(choose, with_kwargs=True)
