"""A training whose inputs have been checked: model, data, labels, settings. No cluster yet."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from bertray.config import TrainConfig
from bertray.config.section import Section
from bertray.errors import ConfigError
from bertray.model.backend import Device
from bertray.model.bundle import Bundle, open_bundle
from bertray.model.heads import Head
from bertray.model.packed import ignores_padding
from bertray.text.long import LongText
from bertray.train import lineage as folder
from bertray.train.augment import Augmenter, choose_rows, load_rewrite, open_augmenter
from bertray.train.base import Base, load_base, open_base
from bertray.train.labels import Labelled, list_shards, read_labels
from bertray.train.layers import freeze, num_frozen
from bertray.train.loss import make_loss
from bertray.train.measure import check_calibration, metric_of
from bertray.train.optim import parameter_groups
from bertray.train.search import draw
from bertray.train.teacher import KEY as TEACHER
from bertray.train.teacher import Teacher, make_teacher

logger = logging.getLogger(__name__)

# Sections, and the setting without which their others do nothing.
NEEDED = {"augmentation": "methods", "distillation": "teacher", "search": "keys"}
# Sections with a setting each that does nothing beside another.
TAKEN_INSTEAD = (
    ("data", "validation_fraction", "validation"),
    ("optim", "warmup_ratio", "warmup_steps"),
)


@dataclass(frozen=True)
class Job:
    """What a training starts from; the metric is the one that picks an epoch.

    That of a search has the trials' own, which share all but settings, base and lineage.
    """

    config: TrainConfig
    base: Base
    lineage: dict[str, str]
    labelled: Labelled
    metric: str
    augmenter: Augmenter | None
    teacher: Bundle | None
    trials: "tuple[Job, ...]" = ()

    @property
    def trainings(self) -> "tuple[Job, ...]":
        """The trials, or without a search itself."""
        return self.trials or (self,)

    def teacher_on(self, device: Device) -> Teacher | None:
        """How the teacher is computed.

        Raises:
            ConfigError: its labels are not those of the rows, or it cannot read their texts.
        """
        if self.teacher is None:
            return None
        return make_teacher(
            self.teacher,
            task=self.labelled.task,
            labels=self.labelled.labels,
            device=device,
            text_pair=self.config.data.text_pair,
        )

    @property
    def max_copies(self) -> int:
        """Rows that augmentation adds at most."""
        if self.augmenter is None:
            return 0
        return self.augmenter.num_copies * len(choose_rows(self.labelled, self.augmenter))


def prepare(config: TrainConfig) -> Job | None:
    """Look at everything that can be wrong, without a cluster; None if the bundle is there."""
    drawn = draw(config) if config.search.keys else []
    shards = list_shards(config.data)
    base = open_base(config.model, LongText(**config.text.model_dump()))
    augmenter = open_augmenter(config.augmentation, seed=config.training.seed)
    named, root = config.distillation.teacher, config.distillation.store
    teacher = open_bundle(named, key=TEACHER, root=root) if named is not None else None
    lineage = folder.lineage_of(
        config, base=base, data_digest=shards.digest, augmenter=augmenter, teacher=teacher
    )
    if _is_there(config, lineage):
        return None
    tell_unheeded(config)
    training = config.training
    labelled = read_labels(shards, config.data, seed=training.seed, task=training.task)
    metric = metric_of(training, labelled.task)
    check_calibration(config.calibration.method, labelled.task)
    job = Job(config, base, lineage, labelled, metric, augmenter, teacher)
    job = replace(job, trials=tuple(trial_job(job, one) for one in drawn))
    check_each(job.trainings)
    if augmenter is not None:
        for method in config.augmentation.methods:
            load_rewrite(augmenter, method)
    job.teacher_on("cpu")  # whether it fits is looked at here
    return job


def is_done(job: Job) -> bool:
    """Whether the bundle has come to be there since the job was prepared. Raises as `prepare`."""
    return _is_there(job.config, job.lineage)


def _is_there(config: TrainConfig, lineage: dict[str, str]) -> bool:
    output, base = config.output, config.model.base
    found = folder.find_equal(output.path, lineage, base=base, replace=output.replace)
    return found is not None


def tell_unheeded(config: TrainConfig) -> None:
    """Warn of settings that were made, and that others leave without effect."""
    for name, key in NEEDED.items():
        section = getattr(config, name)
        made = [one for one in _made(section) if one != key]
        if made and not getattr(section, key):
            logger.warning("%s.%s is for %s.%s, which is not given", name, made[0], name, key)
    for name, key, instead in TAKEN_INSTEAD:
        section = getattr(config, name)
        if {key, instead} <= set(_made(section)):
            value = getattr(section, instead)
            logger.warning("%s.%s is not heeded, as %s.%s=%s is", name, key, name, instead, value)


def _made(section: Section) -> list[str]:
    """The settings that differ from their defaults, in their order."""
    fields = type(section).model_fields
    return [one for one in fields if getattr(section, one) != fields[one].default]


def trial_job(job: Job, config: TrainConfig) -> Job:
    """A trial of a search; what it was found by is part of its lineage."""
    head, dropout = config.model.head, config.model.classifier_dropout
    base = replace(job.base, head=head, classifier_dropout=dropout)
    lineage = folder.lineage_of(
        config,
        base=base,
        data_digest=job.lineage["data"],
        augmenter=job.augmenter,
        teacher=job.teacher,
    )
    found_by = {folder.SEARCH: job.lineage[folder.SEARCH]}
    return replace(job, config=config, base=base, lineage=lineage | found_by, trials=())


def check_each(jobs: Sequence[Job]) -> None:
    """`check` jobs that share their rows; a model is loaded once for each head they have."""
    models: dict[Head, PreTrainedModel] = {}
    for job in jobs:
        head, labelled = job.base.head, job.labelled
        if head not in models:
            models[head] = load_base(job.base, labels=labelled.labels, seed=0, task=labelled.task)
            check_windows(job.base, models[head])
        check(job.config, models[head], labelled)


def check_windows(base: Base, model: PreTrainedModel) -> None:
    """Raise ConfigError where a row's windows, of uneven length, would change each other."""
    if base.long_text.long == "window" and not ignores_padding(
        model, pad_token_id=base.pad_token_id
    ):
        raise ConfigError(
            f"text.long=window: padding changes the numbers of {model.config.model_type}; take "
            "text.long=head_tail, or a model of another family"
        )


def check(config: TrainConfig, model: PreTrainedModel, labelled: Labelled) -> None:
    """Find here, not in every worker, what the model or the labels do not allow.

    Raises:
        ConfigError: layers or labels are named that are not there, or the loss cannot be had, or
            activations not be computed again.
    """
    training = config.training
    if training.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise ConfigError(
            f"training.gradient_checkpointing=true: transformers has it for other families than "
            f"{model.config.model_type}; leave it out"
        )
    num_layers = model.config.num_hidden_layers
    freeze(model, num_layers=num_frozen(training, epoch=0, num_layers=num_layers))
    freeze(model, num_layers=training.freeze_layers)
    parameter_groups(model, config.optim)
    make_loss(
        training,
        task=labelled.task,
        labels=labelled.labels,
        targets=labelled.targets,
        scale=labelled.scale,
    )
