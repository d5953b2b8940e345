"""The settings of `bertray nightly`, which are those of scoring and its own."""

from typing import Literal

from pydantic import Field, model_validator

from bertray.config.report import Explain
from bertray.config.score import ScoreConfig
from bertray.config.section import Count, Section, given


class Night(Section):
    """What a night does beside scoring."""

    on_new_model: Literal["keep", "rescore"] = Field(
        "keep",
        description="When the champion is another model than the one the output belongs to: go on "
        "with that one, or (`rescore`) score all rows anew.",
    )
    label: str | None = Field(
        None, description="Column of the scored shards that holds true labels, where there is one."
    )
    evaluation: str | None = Field(
        None, description="Folder of metrics that the page shows: an `output.path` of evaluate."
    )
    sample_rows: Count = Field(20_000, description="New rows that are looked at, about.")
    fail_on_drift: bool = Field(
        False, description="Exit with code 4 if the new rows are not as on other nights."
    )


class History(Section):
    """Where nights are kept: a record and a page each, and `index.html`."""

    path: str | None = Field(
        None, description="Folder or URI. Default: `output.path` with `-nights` after its name."
    )


class Challenger(Section):
    """A model trained on fresh labels before the night's scoring, and judged by its gate."""

    train: str | None = Field(None, description="YAML of bertray train.")
    evaluate: str | None = Field(
        None, description="YAML of bertray evaluate with a gate, of the model that `train` writes."
    )

    @model_validator(mode="after")
    def _complete(self) -> "Challenger":
        if (self.train is None) != (self.evaluate is None):
            raise ValueError(
                f"{given('challenger.train', self.train)}, "
                f"{given('challenger.evaluate', self.evaluate)}: they go together; give both"
            )
        return self


class Alert(Section):
    """Whom to tell."""

    webhook: str | None = Field(
        None, repr=False, description="URL that takes a POST of JSON; it is kept in no file."
    )
    on: Literal["trouble", "always"] = Field(
        "trouble",
        description="Tell of nights with drift, quarantined shards or rows, and of those that "
        "failed (`trouble`), or of all.",
    )


class NightlyConfig(ScoreConfig):
    """`bertray nightly`: score what is new, look at it, and say so on one page."""

    night: Night = Night()  # type: ignore[call-arg]
    history: History = History()  # type: ignore[call-arg]
    explain: Explain = Explain()  # type: ignore[call-arg]
    challenger: Challenger = Challenger()  # type: ignore[call-arg]
    alert: Alert = Alert()  # type: ignore[call-arg]
