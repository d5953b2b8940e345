"""The settings of `bertray train`."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bertray.config.augmentation import Augmentation, Distillation
from bertray.config.search import Search
from bertray.config.section import CalibrationMethod, Count, NonNegative, Positive, Section, Share


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
        0.1,
        description="Share of the training rows held out when `data.validation` is not given; of "
        "each label that has two, one row at least.",
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
    max_grad_norm: float = Field(
        1.0,
        gt=0.0,
        description="Gradients are clipped to this global norm; `.inf` clips none.",
    )


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
        "`auto`: bfloat16 on GPUs that have it, else float32; older ones (V100, T4) are faster "
        "with float16.",
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
        description="Stop after so many validations in a row without a better "
        "`training.metric`. Default: take all epochs.",
    )
    group_by_length: bool = Field(
        False,
        description="A step's rows are of like length, not drawn at random: faster on GPUs, where "
        "it takes many tokens to keep one busy; but if texts of a length are often of one label, "
        "steps are less mixed.",
    )
    checkpoint_steps: Count | None = Field(
        None,
        description="Write a checkpoint after so many steps as well, for epochs that take hours: "
        "to go on from, not to pick from. Default: after each validation alone.",
    )
    validation_steps: Count | None = Field(
        None,
        description="Validate after so many steps of an epoch as well, for epochs that take hours, "
        "and write a checkpoint: the weights kept are those of the best validation. Default: after "
        "each epoch alone.",
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
            "balanced_accuracy",
            "weighted_f1",
            "mcc",
            "brier",
            "roc_auc",
            "pr_auc",
            "rmse",
            "mae",
            "pearson",
            "spearman",
            "loss",
        ]
        | None
    ) = Field(
        None,
        description="Validation metric that picks the weights that are kept: `accuracy`, "
        "`macro_f1`, `loss`, `balanced_accuracy` or `mcc`; where rows have several labels "
        "`macro_f1`, `micro_f1`, `subset_accuracy`, `lrap` or `loss`; of both `weighted_f1`, "
        "`brier`, `roc_auc` or `pr_auc`, a mean over labels; of numbers `rmse`, `mae`, `pearson`, "
        "`spearman` or `loss`. Default: the first of each.",
    )

    @field_validator("class_weights", mode="before")
    @classmethod
    def _named(cls, weights: Any) -> Any:
        """Labels as YAML reads them, ``0`` and ``true``, by the names that training gives them."""
        if not isinstance(weights, dict):
            return weights
        return {
            str(label).lower() if isinstance(label, int) else label: weight
            for label, weight in weights.items()
        }


class TrainCalibration(Section):
    """Probabilities that say how often they turn out right, by what the validation rows say."""

    method: CalibrationMethod = Field(
        "none",
        description="What scoring does to the model's logits: divides all of them by one number "
        "(`temperature`; no label changes), or gives each label a factor and an offset (`vector`; "
        "where a row has one label, that may change). Default: nothing, and probabilities are "
        "those of plain transformers.",
    )


class Scaling(Section):
    """How many workers train, and on what."""

    num_workers: Count | tuple[Count, Count] = Field(
        1,
        description="Data-parallel workers; or at least and at most, as in `[2, 8]`: training goes "
        "on with those that the cluster has room for, and takes the same steps. When room comes "
        "it starts again from the latest checkpoint: set `training.checkpoint_steps`.",
        examples=["2", "[2, 8]"],
    )
    use_gpu: bool | Literal["auto"] = Field(
        "auto",
        description="One GPU a worker; `auto` takes GPUs if the cluster has enough now. With "
        "`true` and `scaling.num_workers` training waits for GPU nodes that will join.",
    )
    num_threads: Count | None = Field(
        None,
        description="torch threads a worker on CPU, which reserves as many CPUs. Default: it "
        "reserves one, and the workers of a node share out its cores.",
    )
    strategy: Literal["ddp", "fsdp2"] = Field(
        "ddp",
        description="Whether each worker holds the whole model (`ddp`), or they share out weights, "
        "gradients and optimizer state and send each other a layer at a time (`fsdp2`), for models "
        "that do not fit a GPU otherwise. The steps are the same; one worker alone shares nothing.",
    )
    max_failures: Annotated[int, Field(ge=0)] = Field(
        3,
        description="Times, all in all, that training goes on from the latest checkpoint after a "
        "worker was lost or failed. Machines that were announced to go do not count.",
    )

    @property
    def min_workers(self) -> int:
        """Workers that training does not go on without."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

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

    @field_validator("mlflow")
    @classmethod
    def _no_switch(cls, store: bool | str) -> bool | str:
        """Words that older YAML takes for true and false would name a local folder."""
        if str(store).lower() in ("yes", "no", "on", "off"):
            raise ValueError(f"tracking.mlflow={store}: write true, false or the store's URI")
        return store


class BundleOutput(Section):
    """Where the bundle goes."""

    path: str = Field(description="Folder or URI of the bundle.")
    replace: bool = Field(False, description="Train anew over a bundle of other settings or data.")


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
