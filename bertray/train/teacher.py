"""What a trained model says of the rows that another one is to learn: logits, once for each row.

They are computed where texts are read, by the engine that scores, and travel with the token ids:
once, not once an epoch, by batches of the teacher's own, and the workers need no room for it. The
teacher may tokenize in its own way.

# N = rows, C = labels
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from bertray.errors import ConfigError, DataError, ModelError
from bertray.model.backend import Device
from bertray.model.bundle import Bundle, check_pairs, open_bundle
from bertray.model.engine import Engine, resolve_backend
from bertray.model.settings import EngineSettings, resolve_settings
from bertray.schema import Task
from bertray.train.targets import some

KEY = "distillation.teacher"


@dataclass(frozen=True)
class Teacher:
    """A model to learn from. Small and plain, so that it crosses to workers.

    Attributes:
        location: what any node can find it by.
        digest: of the model that the driver saw.
        settings: of the engine.
        order: label ids of the teacher, in the student's order.
    """

    location: str
    digest: str
    settings: EngineSettings
    order: tuple[int, ...]


def make_teacher(
    bundle: Bundle,
    *,
    labels: Sequence[str],
    device: Device,
    task: Task = "single_label",
    text_pair: str | None = None,
) -> Teacher:
    """Match the teacher's labels with those of the data, whatever the order of either.

    Raises:
        ConfigError: they are not the same, one of both does not choose one label of several, or the
            teacher cannot read the rows' texts, single ones or pairs.
    """
    if task != "single_label":
        raise ConfigError(
            f"{KEY}={bundle.source}: a teacher tells of one label a row, and what is learnt here "
            f"is {task}; leave it out"
        )
    if bundle.task != "single_label":
        raise ConfigError(
            f"{KEY}={bundle.source}: its task is {bundle.task}; name a model that gives one label"
        )
    if set(bundle.labels) != set(labels):
        more, fewer = sorted(set(bundle.labels) - set(labels)), set(labels) - set(bundle.labels)
        raise ConfigError(
            f"{KEY}={bundle.source}: the teacher must have the labels of the data; it has "
            f"{some(more)} that no row has, and lacks {some(sorted(fewer))}"
        )
    check_pairs(bundle, text_pair, section="data", key=KEY)
    if text_pair is not None and bundle.long_text.long != "truncate":
        raise ConfigError(
            f"{KEY}={bundle.source}: it reads texts by text.long={bundle.long_text.long}, which "
            f"takes single ones, and data.text_pair={text_pair} is given; name another teacher"
        )
    return Teacher(
        location=bundle.location,
        digest=bundle.digest,
        settings=resolve_backend(bundle, resolve_settings(bundle, device=device), wanted="auto"),
        order=tuple(bundle.labels.index(label) for label in labels),
    )


def teach(teacher: Teacher, columns: Sequence[Sequence[str]]) -> np.ndarray:
    """The teacher's logits, up to a constant for each row, which no softmax sees.

    Args:
        teacher: from `make_teacher`.
        columns: N texts, or as many pairs of texts.

    Returns:
        float32 of shape (N, C), in the student's order of labels.

    Raises:
        ModelError: it is not the teacher that the driver saw.
        DataError: it has no prediction for a row.
    """
    probabilities_NC = _engine(teacher).predict(*columns).probabilities
    if not np.isfinite(probabilities_NC).all():
        row = int(np.flatnonzero(~np.isfinite(probabilities_NC).all(axis=1))[0])
        raise DataError(
            f"{KEY}={teacher.location} has no prediction for {columns[0][row][:60]!r}; "
            "name another teacher, or take the row out"
        )
    smallest = np.finfo(np.float32).tiny
    logits_NC: np.ndarray = np.log(np.maximum(probabilities_NC, smallest))
    return logits_NC[:, list(teacher.order)]


@cache
def _engine(teacher: Teacher) -> Engine:
    """Loaded once a process."""
    bundle = open_bundle(teacher.location, key=KEY)
    if bundle.digest != teacher.digest:
        raise ModelError(
            f"{KEY}={teacher.location}: digest {bundle.digest[:12]} on this node, "
            f"{teacher.digest[:12]} on the driver; put the model where all nodes see it"
        )
    return Engine(bundle, teacher.settings)
