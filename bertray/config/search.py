"""The settings of a search for settings."""

from typing import Annotated, Any

from pydantic import Field, FiniteFloat, ValidationError, field_validator, model_validator

from bertray.config.faults import describe
from bertray.config.section import Count, Section

# What changes neither the rows, nor their tokens, nor what trials are measured by: all of them
# share those, and only so do their metrics compare.
SEARCHABLE_BESIDE_OPTIM = (
    "training.num_epochs",
    "training.per_device_batch_size",
    "training.freeze_layers",
    "training.unfreeze_layers",
    "training.class_weights",
    "training.label_smoothing",
    "training.focal_gamma",
    "model.head",
    "model.classifier_dropout",
    "distillation.temperature",
    "distillation.alpha",
)


class Range(Section):
    """Numbers to draw from, both ends included; integers where the key takes integers."""

    low: FiniteFloat = Field(description="The least.")
    high: FiniteFloat = Field(description="The most.")
    log: bool = Field(False, description="Drawn evenly over the powers of ten.")

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"low={self.low:g}, high={self.high:g}, log={str(self.log).lower()}: "
                f"expected low below high{', and above 0' if self.log else ''}"
            )
        return self


class Search(Section):
    """Trials of several settings, the weak ones stopped early (ASHA, Li et al. 2020)."""

    keys: dict[str, Range | tuple[Any, ...]] = Field(
        {},
        description="What to try for which keys, as in `{optim.learning_rate: {low: 1e-5, high: "
        "1e-4, log: true}, training.per_device_batch_size: [16, 32]}`: lists to pick from, or "
        "ranges, drawn evenly or (`log`) evenly over the powers of ten. Keys of `optim`, and "
        f"{', '.join(f'`{key}`' for key in SEARCHABLE_BESIDE_OPTIM)}. Default: no search.",
    )
    num_trials: Count = Field(
        10, description="Settings to draw; fewer where the lists hold fewer that differ."
    )
    max_concurrent: Count | None = Field(
        None,
        description="Trials at once, at most. Default: as many as there are GPUs for; on CPU as "
        "`scaling.num_threads` allows, without that one for each node.",
    )
    grace_epochs: Count = Field(
        1,
        description="Epochs that each trial gets. Then, and whenever it has done "
        "`search.reduction_factor` times as many, it is stopped unless it is among the best.",
    )
    reduction_factor: Annotated[int, Field(ge=2)] = Field(
        3, description="Of so many trials that come that far, about one goes on."
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Seeds what is drawn.")

    @field_validator("keys", mode="before")
    @classmethod
    def _spaces(cls, keys: Any) -> Any:
        if not isinstance(keys, dict):
            raise ValueError("give the keys with what to try, as in {optim.weight_decay: [0, 0.1]}")
        return {key: _space(key, value) for key, value in keys.items()}


def _space(key: str, value: Any) -> Any:
    """What a key is searched in; here, for pydantic tells of each kind that a value could be."""
    if isinstance(value, dict):
        try:
            return Range.model_validate(value)
        except ValidationError as error:
            raise ValueError(describe(Range, error, value, key)) from None
    if isinstance(value, Range) or (isinstance(value, list | tuple) and value):
        return value
    raise ValueError(
        f"{key}: give a list of values, or a range as in {{low: 1e-5, high: 1e-4, log: true}}"
    )
