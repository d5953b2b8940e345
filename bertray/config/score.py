"""The settings of `bertray score`; those of its model and its pool are also others'."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bertray.config.section import Count, NonNegative, Section, Share

Quarantine = Literal["quarantine", "fail"]


class InferenceModel(Section):
    """The model that predicts."""

    path: str = Field(
        description="A bundle, any Hugging Face sequence-classification folder, hub id or URI, or "
        "a version in `model.store`: `store://NAME@champion`, `store://NAME@3`, in MLflow's "
        "registry `models:/NAME@champion`, `models:/NAME/3`."
    )
    store: str | None = Field(
        None,
        description="Folder or URI of the model store; for `models:/` the URI of an MLflow store, "
        "as in `http://mlflow.internal:5000`, `databricks`, `databricks-uc` or "
        "`databricks://PROFILE` (`pip install bertray[mlflow]`).",
    )
    max_length: Count | None = Field(
        None, description="Tokens a row is cut to. Default: as trained, else what the model allows."
    )
    backend: Literal["auto", "torch", "onnx"] = Field(
        "auto",
        description="What computes the forward pass. `auto`: ONNX Runtime on CPU if it is "
        "installed, takes the model and gives its numbers, else torch.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="Number type of the forward pass. `auto`: float16 on GPU, else float32; rows "
        "whose numbers leave the range of float16 are computed again in bfloat16. "
        "`int8`: faster on CPU, close calls again in float32; the run says how many labels of a "
        "sample stay the same.",
    )
    max_batch_tokens: Count | None = Field(
        None,
        description="Tokens in one forward pass, padding included. Default: 512 on CPU, "
        "65536 on GPU; never measured, so that a rerun gives the same bytes.",
    )


class InferenceText(Section):
    """Texts longer than `model.max_length`; each key that is not given is as trained."""

    long: Literal["truncate", "head_tail", "window"] | None = Field(
        None,
        description="What is read of a text longer than `model.max_length`, as in training. "
        "Default: as trained, else `truncate`.",
    )
    stride: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Tokens that neighbouring windows share. Default: as trained, else a quarter "
        "of `model.max_length`.",
    )
    max_windows: Count | None = Field(
        None,
        description="Windows of a row at most; what lies behind them is not read. Default: as "
        "trained, else 16.",
    )
    aggregate: Literal["mean", "max", "first"] | None = Field(
        None,
        description="What makes one row's logits of its windows'; `first` reads one window alone. "
        "Default: as trained, else `mean`.",
    )


class Input(Section):
    """The shards to score."""

    path: str = Field(description="Parquet shards: a file, folder, glob or URI.")
    text: str = Field("text", description="Column that holds the text.")
    text_pair: str | None = Field(
        None, description="Column that holds the second text of sentence pairs."
    )
    columns: tuple[str, ...] | None = Field(
        None, description="Input columns to pass through. Default: all."
    )
    max_split_rows: Count = Field(
        32_768,
        description="A shard with more rows is cut into splits on row-group borders. An output "
        "keeps the cut that it was begun with.",
    )
    max_split_bytes: Count = Field(
        2 << 30,
        description="Decoded bytes of a split that an actor must hold; a split that holds more is "
        "quarantined. Shards are cut on row-group borders to stay well below, as it was when the "
        "output was begun; the limit itself may be raised at any time.",
    )
    on_bad_shard: Quarantine = Field(
        "quarantine",
        description="A shard that cannot be read: `quarantine` lists it in the manifest, scores "
        "all else and ends with exit code 3; `fail` stops the run.",
    )
    on_bad_row: Quarantine = Field(
        "quarantine",
        description="A row whose text the model cannot classify: `quarantine` keeps it with its "
        "reason and no label, and ends with exit code 3; `fail` stops the run.",
    )
    max_bad_share: Share = Field(
        0.5, description="A run stops once more than this share of its shards or rows is bad."
    )


class Pool(Section):
    """The actors that hold the model."""

    min_actors: Count | None = Field(None, description="Actors at least. Default: `max_actors`.")
    max_actors: Count | None = Field(
        None, description="Actors at most. Default: one a GPU, or the cluster's CPUs / threads."
    )
    num_gpus: NonNegative | Literal["auto"] = Field(
        "auto", description="GPUs an actor; a fraction shares one. `auto`: 1 if there is a GPU."
    )
    num_threads: Count | None = Field(
        None,
        description="torch threads an actor on CPU; beside a GPU, threads that tokenize for it. "
        "Default: 1; beside a GPU its share of the node's CPUs, less four.",
    )

    @property
    def wants_gpus(self) -> bool:
        """Whether GPUs are asked for outright, not left to what the cluster has."""
        return self.num_gpus != "auto" and self.num_gpus > 0

    @model_validator(mode="after")
    def _ordered(self) -> "Pool":
        if self.min_actors and self.max_actors and self.min_actors > self.max_actors:
            raise ValueError(
                f"pool.min_actors={self.min_actors} is above pool.max_actors={self.max_actors}"
            )
        return self


class Abstain(Section):
    """No label for rows whose most probable one is not sure enough; they keep probabilities."""

    below: Share | None = Field(
        None,
        description="A row whose most probable label is less probable has the status `abstained` "
        "and no label. Only where rows have one label. Default: every row gets its label.",
    )
    precision: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None,
        description="The same by the share of labels that is to be right, as the rows have it that "
        "the bundle was trained or calibrated with; the bundle knows thresholds for 0.8, 0.85, "
        "0.9, 0.95, 0.97, 0.98, 0.99, 0.995 and 0.999, and the next higher one is taken.",
    )

    @model_validator(mode="after")
    def _one(self) -> "Abstain":
        if self.below is not None and self.precision is not None:
            raise ValueError(
                f"abstain.below={self.below:g} and abstain.precision={self.precision:g} exclude "
                "each other; give one"
            )
        return self


class ScoredOutput(Section):
    """Where the scored shards go."""

    path: str = Field(description="Folder or URI of the scored shards.")
    prefix: str = Field("", description="Put before the names of the scored columns.")
    replace: bool = Field(
        False, description="Start the output over when it holds another model's or settings' work."
    )
    prune: bool = Field(
        False, description="Remove the scored files of shards that are no longer in the input."
    )


class ScoreConfig(Section):
    """`bertray score`: label every row of every shard."""

    model: InferenceModel
    text: InferenceText = InferenceText()  # type: ignore[call-arg]
    input: Input
    abstain: Abstain = Abstain()  # type: ignore[call-arg]
    pool: Pool = Pool()  # type: ignore[call-arg]
    output: ScoredOutput
