"""What a bundle was made of, and whose output folder it is.

bertray.json     the bundle is complete, and this is its lineage
_config.yaml     the resolved config        _training.json   the epochs
_steps.jsonl     loss, rate and gradient norm of each optimizer step
_curves.png      all of that as a picture
_curves.tfevents the same for TensorBoard, if wanted
_trials.jsonl    after a search: each trial, the best first
_run/            while training: Ray Train's checkpoints, and whose they are
_lease.json      while training: which process is at it
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from bertray import storage
from bertray.config import TrainConfig
from bertray.errors import OutputError
from bertray.lease import LEASE
from bertray.model.bundle import Bundle
from bertray.model.manifest import MANIFEST, Manifest, package_versions, read_manifest
from bertray.model.publish import publish_bundle
from bertray.train.augment import Augmenter
from bertray.train.base import Base

logger = logging.getLogger(__name__)

RUN = "_run"
OWNER = f"{RUN}/lineage.json"
SEARCH = "search"
# They move no row to another step; where passes are cut otherwise, dropout is drawn otherwise.
SAME_STEPS = {"checkpoint_steps", "accumulation_steps", "gradient_checkpointing"}


def lineage_of(
    config: TrainConfig,
    *,
    base: Base,
    data_digest: str,
    augmenter: Augmenter | None,
    teacher: Bundle | None,
) -> dict[str, str]:
    """All that decides the weights: equal lineages make equal bundles on the same machine.

    Where things lie is no part of it, nor how fast, or in how little memory, they are computed.
    """
    settings: dict[str, Any] = {
        "model.max_length": base.max_length,
        "model.head": base.head,
        "model.classifier_dropout": base.classifier_dropout,
        **_flat("text", config.text.model_dump()),
        **_flat("data", config.data.model_dump(exclude={"train", "validation"})),
        **_flat("optim", config.optim.model_dump()),
        **_flat("training", config.training.model_dump(exclude=SAME_STEPS)),
        "scaling.num_workers": config.scaling.max_workers,
    }
    if config.calibration.method != "none":
        settings |= _flat("calibration", config.calibration.model_dump())
    if augmenter is not None:
        places = {"wordnet", "masked_model", "translation_models"}
        settings |= _flat("augmentation", config.augmentation.model_dump(exclude=places))
        for source in augmenter.sources:
            settings[source.key] = [*settings.get(source.key, []), source.digest]
    if teacher is not None:
        settings |= _flat("distillation", config.distillation.model_dump(exclude={"store"}))
        settings["distillation.teacher"] = teacher.digest
    if config.search.keys:
        settings[SEARCH] = config.search.model_dump(exclude={"max_concurrent"})
        settings |= settings[SEARCH]["keys"]
    return {
        "data": data_digest,
        "base": base.digest,
        **{key: json.dumps(value) for key, value in settings.items()},
    }


def searched(lineage: dict[str, str]) -> dict[str, str]:
    """Of what a search has found, the lineage of the search: it has no values, but where from."""
    if SEARCH not in lineage:
        return lineage
    keys = json.loads(lineage[SEARCH])["keys"]
    return {**lineage, **{key: json.dumps(space) for key, space in keys.items()}}


def run_name(lineage: dict[str, str], *, kind: str = "train") -> str:
    """Names the training, so that a second attempt finds the first one's checkpoints.

    Other versions of the libraries start anew: Ray does not read another Ray's checkpoints.
    """
    parts = json.dumps([lineage, package_versions()], sort_keys=True)
    return f"{kind}-{hashlib.sha256(parts.encode()).hexdigest()[:16]}"


def find_equal(
    output: str, lineage: dict[str, str], *, base: str, replace: bool
) -> Manifest | None:
    """The bundle in ``output`` if it is of this lineage; None if there is none yet.

    Raises:
        OutputError: the folder holds something else, or a bundle of another lineage and
            ``replace`` is not set.
    """
    fs, path = storage.resolve(output)
    if fs.isfile(path):
        raise OutputError(f"output.path={output} is a file; name a folder")
    manifest = read_manifest(output)
    if manifest is None:
        if storage.is_empty(output, but_for=LEASE) or storage.exists(storage.join(output, OWNER)):
            return None
        raise OutputError(
            f"output.path={output} holds files that no bertray train has written "
            f"(no {MANIFEST}); choose an empty or new folder"
        )
    if _comparable(manifest.lineage, lineage) == lineage:
        return manifest
    if replace:
        return None
    raise OutputError(
        f"output.path={output} holds a bundle that {_difference(manifest, lineage, base=base)}; "
        "choose another folder, or output.replace=true"
    )


def begin(output: str, lineage: dict[str, str]) -> None:
    """Say that the folder is ours before the first file of the bundle is there.

    If another training was begun there, whose checkpoints are of no use, the log says what differs.

    Raises:
        OutputError: nothing can be written there.
        StorageError: what says whose folder it is cannot be read.
    """
    owner = storage.join(output, OWNER)
    here = lineage | _flat("version", package_versions())
    begun = storage.get_json(owner)
    names = (run_name(lineage, kind=kind) for kind in ("train", "search"))
    has_begun = any(storage.exists(storage.join(output, RUN, name)) for name in names)
    if not has_begun and begun and (changes := _changes(_comparable(begun, here), here)):
        logger.warning(
            "output.path=%s: starting from the beginning; the training that was begun there is "
            "another one (%s)",
            output,
            "; ".join(changes),
        )
    storage.put_json(owner, here, overwrite=True)


def publish(folder: Path, output: str) -> None:
    """Put a finished bundle in place of what is there; whole, or not at all."""
    publish_bundle(folder, output, spare=[RUN, LEASE])
    finish(output)


def finish(output: str) -> None:
    """Remove what only an unfinished training needs."""
    storage.remove(storage.join(output, RUN))


def _difference(manifest: Manifest, lineage: dict[str, str], *, base: str) -> str:
    """Names both sides of what does not fit."""
    there = _comparable(manifest.lineage, lineage)
    bases = f"{manifest.base} there, {base} here, with "
    return f"was trained otherwise ({'; '.join(_changes(there, lineage, bases=bases))})"


def _changes(there: dict[str, str], here: dict[str, str], *, bases: str = "") -> list[str]:
    """What is of other values, each with both."""
    found = []
    if there.get("base") != here["base"]:
        found.append(f"model.base: {bases}other weights")
    if there.get("data") != here["data"]:
        found.append("data.train or data.validation: other files, or files that have changed")
    for key in sorted({*there, *here} - {"base", "data"}):
        old, new = there.get(key, "not known"), here.get(key, "not known")
        if old != new:
            found.append(f"{key}: {old} there, {new} here")
    return found


def _comparable(there: dict[str, str], here: dict[str, str]) -> dict[str, str]:
    """A bundle's lineage as a search has it, if that is what it is compared with."""
    return searched(there) if SEARCH in here else there


def _flat(section: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{key}": value for key, value in values.items()}
