"""Every setting of every command, with its default and its meaning, and how a job's config is read.

Precedence: defaults < YAML file < ``key=value`` on the command line. Nothing is read from the
environment. An unknown key is an error that names the nearest known one.
"""

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from bertray.errors import ConfigError

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Alpha = Annotated[float, Field(gt=0.0, le=1.0)]
Method = Literal["synonyms", "swap", "deletion", "masked", "back_translation"]
Quarantine = Literal["quarantine", "fail"]
CalibrationMethod = Literal["none", "temperature", "vector"]


class Section(BaseModel):
    """A group of settings: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# --------------------------------------------------------------------------- train


class TrainModel(Section):
    """What to fine-tune."""

    base: str = Field(description="Encoder to start from: hub id, folder or URI.")
    max_length: Count | None = Field(
        None, description="Tokens a row is cut to. Default: what the model allows, at most 512."
    )
    head: Literal["family", "linear"] = Field(
        "family",
        description="What is put on top of the encoder: what models of its family have there, such "
        "as BERT's pooler and a linear layer, or (`linear`) dropout and one linear layer on [CLS].",
    )
    classifier_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(
        None,
        description="Share of the head's inputs that dropout zeroes in training. Default: as the "
        "model has it, mostly 0.1.",
    )


class TrainText(Section):
    """Texts longer than `model.max_length`; the bundle remembers it."""

    long: Literal["truncate", "head_tail", "window"] = Field(
        "truncate",
        description="Of a text longer than `model.max_length` read the first tokens (`truncate`), "
        "a quarter from its beginning and the rest from its end (`head_tail`), or all in windows "
        "that overlap, whose logits are made one row's (`window`). Pairs can but be truncated.",
    )
    stride: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Tokens that neighbouring windows share. Default: a quarter of "
        "`model.max_length`.",
    )
    max_windows: Count = Field(
        16, description="Windows of a row at most; what lies behind them is not read."
    )
    aggregate: Literal["mean", "max"] = Field(
        "mean", description="What makes one row's logits of its windows', before the loss too."
    )

    @model_validator(mode="after")
    def _heeded(self) -> "TrainText":
        others = self.model_dump(exclude={"long"})
        changed = [key for key in others if others[key] != type(self).model_fields[key].default]
        if changed and self.long != "window":
            raise ValueError(f"text.{changed[0]} is for text.long=window, not {self.long}")
        return self


class TrainData(Section):
    """Labelled Parquet."""

    train: str = Field(description="Training rows: a Parquet file, folder, glob or URI.")
    validation: str | None = Field(
        None,
        description="Validation rows, likewise. Default: a stratified split of the training rows.",
    )
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.1, description="Share of the training rows held out when `data.validation` is not given."
    )
    text: str = Field("text", description="Column that holds the text.")
    text_pair: str | None = Field(
        None, description="Column that holds the second text of sentence pairs."
    )
    label: str = Field(
        "label",
        description="Column that holds the label: string or integer, a list of them where rows "
        "have any number of labels, a number where that is to be learnt.",
    )


class Optim(Section):
    """AdamW and its schedule."""

    learning_rate: Positive = Field(2e-5, description="Peak learning rate.")
    weight_decay: NonNegative = Field(
        0.01, description="Decoupled weight decay; biases and LayerNorm weights get none."
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the rate falls to zero after the warmup, or that it does not."
    )
    warmup_ratio: Share = Field(0.1, description="Share of all steps over which the rate rises.")
    warmup_steps: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Steps over which the rate rises. Default: `optim.warmup_ratio` of all."
    )
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0,
        description="Each layer's rate is this share of that of the layer above it; the head has "
        "the full rate, the embeddings the least.",
    )
    max_grad_norm: Positive = Field(1.0, description="Gradients are clipped to this global norm.")


class Training(Section):
    """The training loop."""

    task: Literal["auto", "single_label", "multi_label", "regression"] = Field(
        "auto",
        description="What is learnt: one label a row, any number of independent ones, or "
        "(`regression`) a number. `auto`: labels, as the label column has them.",
    )
    num_epochs: Count = Field(3, description="Passes over the training rows.")
    per_device_batch_size: Count = Field(
        32,
        description="Rows per worker and optimizer step; times the most workers, the rows of a "
        "step.",
    )
    accumulation_steps: Count = Field(
        1,
        description="Forward and backward passes that a worker's rows of a step are cut into: less "
        "memory, the same steps.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Number type of the matrix products; weights and optimizer stay in float32. "
        "`auto`: bfloat16 on GPUs that have it, else float32.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Keep no activations within layers, compute them again: less memory, a third "
        "more time.",
    )
    freeze_layers: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="The embeddings and this many layers above them keep their weights. Default: "
        "all are trained.",
    )
    unfreeze_layers: Count | None = Field(
        None,
        description="Gradual unfreezing (Howard & Ruder 2018): the first epoch trains the head "
        "alone, each later one so many layers more, from the top down to what "
        "`training.freeze_layers` keeps. Default: all from the start.",
    )
    class_weights: Literal["balanced"] | dict[str, Positive] | None = Field(
        None,
        description="Weight of a row by its label, as in `{spam: 4}`; labels not named have 1. "
        "`balanced`: each label weighs as much as any other. Where rows have several labels: "
        "weight of the rows that have it for what is learnt of it; `balanced`: as much as the "
        "rows that do not. Default: all rows weigh the same.",
    )
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0,
        description="Share of each row's target that is spread over all labels. Only where a row "
        "has one label.",
    )
    focal_gamma: NonNegative = Field(
        0.0,
        description="Focal loss: a row counts less the surer the model is of its label, as with 2.",
    )
    early_stopping_patience: Count | None = Field(
        None,
        description="Stop after so many epochs in a row without a better `training.metric`. "
        "Default: take them all.",
    )
    checkpoint_steps: Count | None = Field(
        None,
        description="Write a checkpoint after so many steps as well, for epochs that take hours. "
        "Default: after each epoch alone.",
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        0, description="Seeds the split, the shuffles, the head and the dropout."
    )
    metric: (
        Literal[
            "accuracy",
            "macro_f1",
            "micro_f1",
            "subset_accuracy",
            "lrap",
            "rmse",
            "mae",
            "pearson",
            "spearman",
            "loss",
        ]
        | None
    ) = Field(
        None,
        description="Validation metric that picks the epoch whose weights are kept: `accuracy`, "
        "`macro_f1` or `loss`; where rows have several labels `macro_f1`, `micro_f1`, "
        "`subset_accuracy`, `lrap` or `loss`; of numbers `rmse`, `mae`, `pearson`, `spearman` or "
        "`loss`. Default: the first of these.",
    )


class Augmentation(Section):
    """Changed copies of training rows, with their labels; validation rows have none."""

    methods: tuple[Method, ...] = Field(
        (),
        description="How copies are made, each method its own: `synonyms`, `swap` and `deletion` "
        "of words (EDA, Wei & Zou 2019), `masked` (words guessed by a masked language model), "
        "`back_translation`. Of a pair one text, drawn at random, changes. Default: no copies.",
    )
    row_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="Share of the training rows that have copies, drawn by `training.seed`."
    )
    num_copies: Count = Field(1, description="Copies of such a row by each method.")
    synonyms_alpha: Alpha = Field(0.1, description="Share of words that `synonyms` replaces.")
    swap_alpha: Alpha = Field(0.1, description="Swaps of two words by `swap`, per word.")
    deletion_alpha: Alpha = Field(0.1, description="Chance that `deletion` takes a word out.")
    masked_alpha: Alpha = Field(0.15, description="Share of words that `masked` replaces.")
    wordnet: str | None = Field(
        None,
        description="NLTK data folder that holds `corpora/wordnet`, on all nodes. Default: where "
        "NLTK looks.",
    )
    masked_model: str | None = Field(
        None, description="Masked language model for `masked`: hub id, folder or URI."
    )
    translation_models: tuple[str, str] | None = Field(
        None,
        description="Models for `back_translation`, there and back, as in "
        "`[Helsinki-NLP/opus-mt-en-de, Helsinki-NLP/opus-mt-de-en]`: hub ids, folders or URIs of "
        "models that need not be told the languages.",
    )

    @model_validator(mode="after")
    def _complete(self) -> "Augmentation":
        if len(set(self.methods)) < len(self.methods):
            raise ValueError("augmentation.methods names one twice; raise augmentation.num_copies")
        for method, key in (
            ("masked", "masked_model"),
            ("back_translation", "translation_models"),
        ):
            if (method in self.methods) != (getattr(self, key) is not None):
                raise ValueError(
                    f"augmentation.methods={list(self.methods)}: {method} and "
                    f"augmentation.{key} go together; give both or neither"
                )
        return self


class Distillation(Section):
    """A trained model whose probabilities are learnt beside the labels (Hinton et al. 2015)."""

    teacher: str | None = Field(
        None,
        description="A bundle, any Hugging Face sequence-classification folder, hub id or URI, or "
        "a version in `distillation.store` as `bertray score` takes it (`store://NAME@champion`, "
        "`models:/NAME/3`), of the same labels as the data. Default: no teacher.",
    )
    store: str | None = Field(
        None, description="Folder or URI of the model store it is in, MLflow's included."
    )
    temperature: Positive = Field(
        2.0, description="Logits of both models are divided by it; higher says more of all labels."
    )
    alpha: Share = Field(
        0.5, description="Weight of what the teacher says in the loss; the labels have the rest."
    )


class TrainCalibration(Section):
    """Probabilities that say how often they turn out right, by what the validation rows say."""

    method: CalibrationMethod = Field(
        "none",
        description="What scoring does to the model's logits: divides all of them by one number "
        "(`temperature`; no label changes), or gives each label a factor and an offset (`vector`; "
        "where a row has one label, that may change). Default: nothing, and probabilities are "
        "those of plain transformers.",
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
        "ranges, drawn evenly or (`log`) evenly over the powers of ten. Keys of `optim`; of "
        "`training`, `model` and `distillation` those that change neither rows nor tokens nor what "
        "is measured. Default: no search.",
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
            raise ValueError(_explain(Range, error, key)) from None
    if isinstance(value, Range) or (isinstance(value, list | tuple) and value):
        return value
    raise ValueError(
        f"{key}: give a list of values, or a range as in {{low: 1e-5, high: 1e-4, log: true}}"
    )


class Scaling(Section):
    """How many workers train, and on what."""

    num_workers: Count | tuple[Count, Count] = Field(
        1,
        description="Data-parallel workers; or at least and at most, as in `[2, 8]`: training goes "
        "on with those that the cluster has room for, and takes the same steps.",
    )
    use_gpu: bool | Literal["auto"] = Field(
        "auto", description="One GPU a worker; `auto` takes GPUs if the cluster has enough."
    )
    num_threads: Count | None = Field(
        None, description="torch threads a worker on CPU. Default: the node's cores shared out."
    )
    strategy: Literal["ddp", "fsdp2"] = Field(
        "ddp",
        description="Whether each worker holds the whole model (`ddp`), or they share out weights, "
        "gradients and optimizer state and send each other a layer at a time (`fsdp2`), for models "
        "that do not fit a GPU otherwise. The steps are the same; one worker alone shares nothing.",
    )

    @property
    def max_workers(self) -> int:
        """Workers when the cluster has room for all of them."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @model_validator(mode="after")
    def _ordered(self) -> "Scaling":
        if isinstance(self.num_workers, tuple) and self.num_workers[0] > self.num_workers[1]:
            raise ValueError(f"scaling.num_workers={list(self.num_workers)}: give the fewest first")
        return self


class Tracking(Section):
    """Where else a training is followed; its bundle has all of it in any case."""

    mlflow: bool | str = Field(
        False,
        description="MLflow store that settings, each step and epoch, and the bundle are logged "
        "to (`pip install bertray[mlflow]`): a tracking server, as in "
        "`http://mlflow.internal:5000`, or another URI that MLflow knows. `true`: the SQLite file "
        "`mlflow.db` where the command runs. Credentials come from MLflow's own environment "
        "variables.",
    )
    experiment: str = Field(
        "bertray", description="MLflow experiment that the run is part of; made if there is none."
    )
    tensorboard: bool = Field(
        False,
        description="Put the course into the bundle as TensorBoard reads it, too "
        "(`_curves.tfevents`).",
    )


class BundleOutput(Section):
    """Where the bundle goes."""

    path: str = Field(description="Folder or URI of the bundle.")
    replace: bool = Field(False, description="Train anew over a bundle of other settings or data.")


# --------------------------------------------------------------------------- score, evaluate


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
        "installed and takes the model, else torch.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="Number type of the forward pass. `auto`: float16 on GPU, else float32; rows "
        "whose numbers leave the range of float16 are computed again in bfloat16. "
        "`int8`: faster on CPU; the run says how many labels of a sample stay the same.",
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
        32_768, description="A shard with more rows is cut into splits on row-group borders."
    )
    max_split_bytes: Count = Field(
        2 << 30,
        description="Decoded bytes of a split that an actor must hold. Shards are cut on row-group "
        "borders to stay well below; a row group that holds more is quarantined.",
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
                f"calibration.method={self.method} and calibration.bundle={self.bundle} go "
                "together; give both or neither"
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
        "`rows_per_s` too.",
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
        description="Metric by which the champion is compared, on the same rows. Default: "
        "`accuracy`, `macro_f1` where rows have several labels, `rmse` for numbers.",
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
                f"gate.store={self.store} and gate.name={self.name} go together; give both"
            )
        rules = self.model_dump(exclude={"store", "name"}, exclude_defaults=True)
        if self.store is None and rules:
            raise ValueError(f"gate.{next(iter(rules))} needs gate.store and gate.name")
        return self


class ReportOutput(Section):
    """Where the metrics go."""

    path: str = Field(description="Folder or URI for metrics.json, report.md and reliability.png.")


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

    num_rows: Annotated[int, Field(ge=0)] = Field(
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
                f"challenger.train={self.train} and challenger.evaluate={self.evaluate} go "
                "together; give both"
            )
        return self


class Alert(Section):
    """Whom to tell."""

    webhook: str | None = Field(
        None, description="URL that takes a POST of JSON; it is kept in no file."
    )
    on: Literal["trouble", "always"] = Field(
        "trouble",
        description="Tell of nights with drift, quarantined shards or rows (`trouble`), or of all.",
    )


# --------------------------------------------------------------------------- the jobs


class TrainConfig(Section):
    """`bertray train`: fine-tune an encoder, write a bundle."""

    model: TrainModel
    text: TrainText = TrainText()  # type: ignore[call-arg]
    data: TrainData
    optim: Optim = Optim()  # type: ignore[call-arg]
    training: Training = Training()  # type: ignore[call-arg]
    augmentation: Augmentation = Augmentation()  # type: ignore[call-arg]
    distillation: Distillation = Distillation()  # type: ignore[call-arg]
    calibration: TrainCalibration = TrainCalibration()  # type: ignore[call-arg]
    search: Search = Search()  # type: ignore[call-arg]
    scaling: Scaling = Scaling()  # type: ignore[call-arg]
    tracking: Tracking = Tracking()  # type: ignore[call-arg]
    output: BundleOutput

    @model_validator(mode="after")
    def _single_texts(self) -> "TrainConfig":
        if self.data.text_pair is not None and self.text.long != "truncate":
            raise ValueError(
                f"text.long={self.text.long} takes single texts, and "
                f"data.text_pair={self.data.text_pair} is given; leave one of them out"
            )
        return self


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


class ScoreConfig(Section):
    """`bertray score`: label every row of every shard."""

    model: InferenceModel
    text: InferenceText = InferenceText()  # type: ignore[call-arg]
    input: Input
    abstain: Abstain = Abstain()  # type: ignore[call-arg]
    pool: Pool = Pool()  # type: ignore[call-arg]
    output: ScoredOutput


class ReportConfig(Section):
    """`bertray report`: put what a scored folder holds, and what changed, on one page."""

    input: ReportInput
    model: ReportModel = ReportModel()  # type: ignore[call-arg]
    explain: Explain = Explain()  # type: ignore[call-arg]
    output: PageOutput = PageOutput()  # type: ignore[call-arg]


class NightlyConfig(ScoreConfig):
    """`bertray nightly`: score what is new, look at it, and say so on one page."""

    night: Night = Night()  # type: ignore[call-arg]
    history: History = History()  # type: ignore[call-arg]
    explain: Explain = Explain()  # type: ignore[call-arg]
    challenger: Challenger = Challenger()  # type: ignore[call-arg]
    alert: Alert = Alert()  # type: ignore[call-arg]


JOBS: dict[str, type[Section]] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "score": ScoreConfig,
    "report": ReportConfig,
    "nightly": NightlyConfig,
}

C = TypeVar("C", bound=Section)


def load_config(schema: type[C], path: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """Read a job's config: the file, then the ``key=value`` words over it.

    Args:
        schema: the job's config model.
        path: a YAML file, or None for defaults and overrides alone.
        overrides: words such as ``optim.learning_rate=1e-4``; values are read as YAML, except
            where the key takes text, which is taken as it stands.

    Raises:
        ConfigError: the file cannot be read, or a key or value does not fit ``schema``.
    """
    values = _read_yaml(Path(path)) if path is not None else {}
    origin = str(path) if path is not None else "the command line"
    for word in overrides:
        key, equals, raw = word.partition("=")
        if not equals:
            raise ConfigError(
                f"{word!r} is not a setting; write key=value, as in pool.max_actors=2"
            )
        _set(values, key, _parse(schema, key, raw))
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(schema, error, origin)) from None


def with_settings(config: C, settings: Mapping[str, Any], *, origin: str) -> C:
    """The same config with some dotted keys set anew.

    Args:
        config: of any job.
        settings: values by dotted key.
        origin: where they come from, for messages.

    Raises:
        ConfigError: a value does not fit.
    """
    values = config.model_dump()
    for key, value in settings.items():
        _set(values, key, value)
    try:
        return type(config).model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(type(config), error, origin)) from None


def dump_config(config: Section) -> str:
    """The resolved config as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def known_keys(schema: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of ``schema`` with its pydantic field."""
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from known_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def kinds_of(schema: type[Section], key: str) -> set[Any]:
    """The plain types that a key accepts, bounds left out; none if there is no such key."""
    field = dict(known_keys(schema)).get(key)
    return _members(field.annotation) if field is not None else set()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the config file: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found a {type(values).__name__}, expected sections with keys")
    return values


def _parse(schema: type[Section], key: str, raw: str) -> Any:
    """The value of a command-line word. ``1e-4`` and ``no`` stay text where text is wanted."""
    words = {"null": type(None), "true": bool, "false": bool}
    kinds = kinds_of(schema, key)
    if str in kinds and words.get(raw) not in kinds:
        return raw
    try:
        return yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}={raw}: not valid YAML: {error}") from error


def _members(annotation: Any) -> set[Any]:
    """The plain types a field accepts: ``str | None`` gives ``{str, NoneType}``."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return set().union(*(_members(part) for part in typing.get_args(annotation)))
    if typing.get_origin(annotation) is Annotated:
        return _members(typing.get_args(annotation)[0])
    return {annotation}


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{key}: {section!r} is not a section")
    values[last] = value


def _explain(schema: type[Section], error: ValidationError, origin: str) -> str:
    """One line a problem, each naming the key and what to do."""
    known = [key for key, _ in known_keys(schema)]
    lines = []
    for problem in error.errors():
        key = _key_of(problem["loc"], known)
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            lines.append(f"unknown key {key!r}{hint}")
        elif problem["type"] == "missing":
            wanted = [name for name in known if name == key or name.startswith(f"{key}.")]
            lines.append(f"{' and '.join(_required(schema, wanted)) or key} must be given")
        elif not key:
            lines.append(problem["msg"].removeprefix("Value error, "))
        else:
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "tuple_type":
                message = "expected a list, as in [id, day]"
            lines.append(f"{key}={problem['input']!r}: {message[:1].lower()}{message[1:]}")
    return f"{origin}: " + "; ".join(dict.fromkeys(lines))


def _key_of(loc: tuple[int | str, ...], known: Sequence[str]) -> str:
    """The dotted key of a pydantic location, without the union member or the list index tried."""
    parts = [str(part) for part in loc]
    for end in range(1, len(parts)):
        if ".".join(parts[:end]) in known:
            return ".".join(parts[:end])
    return ".".join(parts)


def _required(schema: type[Section], keys: list[str]) -> list[str]:
    fields = dict(known_keys(schema))
    return [key for key in keys if fields[key].is_required()]
