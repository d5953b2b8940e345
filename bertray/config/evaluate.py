"""The settings of `bertray evaluate`."""

from typing import Annotated

from pydantic import Field, model_validator

from bertray.config.score import InferenceModel, InferenceText, Pool
from bertray.config.section import CalibrationMethod, NonNegative, Section, given


class EvaluateData(Section):
    """Labelled rows to evaluate on."""

    path: str = Field(description="Labelled Parquet: a file, folder, glob or URI.")
    text: str = Field("text", description="Column that holds the text.")
    text_pair: str | None = Field(
        None, description="Column that holds the second text of sentence pairs."
    )
    label: str = Field("label", description="Column that holds the true label.")
    slices: tuple[str, ...] = Field(
        (),
        description="Columns by whose values the rows are measured as well, each value by itself, "
        "as in `[source, language]`.",
    )


class Intervals(Section):
    """How far metrics would be off if other rows had been labelled: the percentile bootstrap."""

    num_resamples: Annotated[int, Field(ge=0)] = Field(
        1_000, description="Times that rows are drawn anew; 0 for no intervals."
    )
    level: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.95, description="Share of the resamples within the interval."
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Seeds the draws.")


class EvaluateCalibration(Section):
    """A calibrated copy of the model, by what these rows say."""

    method: CalibrationMethod = Field(
        "none",
        description="What scoring with the copy does to the model's logits; see `calibration` of "
        "`bertray train`. The metrics stay those of `model.path`.",
    )
    bundle: str | None = Field(
        None,
        description="Folder or URI of the copy. An earlier copy of the same model is replaced.",
    )

    @model_validator(mode="after")
    def _complete(self) -> "EvaluateCalibration":
        if (self.method == "none") != (self.bundle is None):
            raise ValueError(
                f"calibration.method={self.method}, {given('calibration.bundle', self.bundle)}: "
                "they go together; give both or neither"
            )
        return self


class Gate(Section):
    """Whether the model may go into use; exit code 4 if not."""

    store: str | None = Field(
        None,
        description="Folder or URI of a model store, or URI of an MLflow store. The model is put "
        "there, and becomes its champion if every rule holds. Default: nothing is judged.",
    )
    name: str | None = Field(None, description="What the model is called there, as in `reviews`.")
    at_least: dict[str, float] = Field(
        {},
        description="Metrics of metrics.json that must not be less, as in `{accuracy: 0.9}`; "
        "`rows_per_s` too: of all actors together, and without the time in which they load the "
        "model where each of them reads several times 8,192 rows.",
    )
    at_most: dict[str, float] = Field(
        {}, description="Metrics that must not be more, as in `{ece: 0.05}`."
    )
    slices_at_least: dict[str, float] = Field(
        {},
        description="The same for each value of each column of `data.slices` that 30 rows have; "
        "of a metric where less is better it is the most there may be.",
    )
    metric: str | None = Field(
        None,
        description="Metric by which the champion is compared, on the same rows; one whose label "
        "it does not know it gets wrong. Default: `accuracy`, `macro_f1` where rows have several "
        "labels, `rmse` for numbers.",
    )
    margin: NonNegative = Field(0.0, description="That much worse than the champion is no worse.")
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = Field(
        0.95,
        description="Refused if worse than the champion on more than this share of resamples of "
        "the rows. One that is as good is promoted with about this probability.",
    )

    @model_validator(mode="after")
    def _complete(self) -> "Gate":
        if (self.store is None) != (self.name is None):
            raise ValueError(
                f"{given('gate.store', self.store)}, {given('gate.name', self.name)}: they go "
                "together; give both"
            )
        rules = self.model_dump(exclude={"store", "name"}, exclude_defaults=True)
        if self.store is None and rules:
            raise ValueError(f"gate.{next(iter(rules))} needs gate.store and gate.name")
        return self


class ReportOutput(Section):
    """Where the metrics go."""

    path: str = Field(description="Folder or URI for metrics.json, report.md and reliability.png.")


class EvaluateConfig(Section):
    """`bertray evaluate`: measure a model on labelled rows."""

    model: InferenceModel
    text: InferenceText = InferenceText()  # type: ignore[call-arg]
    data: EvaluateData
    gate: Gate = Gate()  # type: ignore[call-arg]
    intervals: Intervals = Intervals()  # type: ignore[call-arg]
    calibration: EvaluateCalibration = EvaluateCalibration()  # type: ignore[call-arg]
    pool: Pool = Pool()  # type: ignore[call-arg]
    output: ReportOutput

    @model_validator(mode="after")
    def _resampled(self) -> "EvaluateConfig":
        if self.gate.store is not None and not self.intervals.num_resamples:
            raise ValueError("intervals.num_resamples=0: the gate compares models by resamples")
        return self
