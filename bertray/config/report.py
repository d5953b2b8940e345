"""The settings of `bertray report`."""

from typing import Annotated

from pydantic import Field

from bertray.config.section import Count, Section


class ReportInput(Section):
    """What the page is about."""

    path: str = Field(description="Scored shards: an `output.path` of score.")
    reference: str | None = Field(
        None,
        description="Another night that this one is compared with: its scored shards, or a "
        "`_profile.json`. Default: nothing is compared.",
    )
    past: tuple[str, ...] = Field(
        (),
        description="More nights that went well, likewise; five or more say how much nights "
        "differ, and so what counts as drift.",
    )
    evaluation: str | None = Field(
        None, description="Folder of metrics to show: an `output.path` of evaluate."
    )
    label: str | None = Field(
        None, description="Column of the scored shards that holds true labels, where there is one."
    )
    sample_rows: Count = Field(
        20_000, description="Scored rows that are read, about; counts of labels are of all rows."
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Seeds the sample.")


class ReportModel(Section):
    """The model that scored."""

    path: str | None = Field(
        None, description="Where it lies now. Default: where it lay when it scored."
    )
    store: str | None = Field(
        None, description="Folder or URI of the model store it was in, MLflow's included."
    )


class Explain(Section):
    """Rows whose words are marked by what they did to the prediction."""

    num_rows: Annotated[int, Field(ge=0, le=20)] = Field(  # a page of more is over 3 MB
        0,
        description="Rows of each kind: least certain, most confident, random and, with "
        "`input.label`, the most confident errors. More than 0 needs `pip install "
        "bertray[explain]`.",
    )


class PageOutput(Section):
    """Where the page goes."""

    path: str | None = Field(
        None, description="File or URI of the page. Default: `_report.html` beside the shards."
    )


class ReportConfig(Section):
    """`bertray report`: put what a scored folder holds, and what changed, on one page."""

    input: ReportInput
    model: ReportModel = ReportModel()  # type: ignore[call-arg]
    explain: Explain = Explain()  # type: ignore[call-arg]
    output: PageOutput = PageOutput()  # type: ignore[call-arg]
