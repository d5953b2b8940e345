"""A copy of a model that is the same but for its calibration."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from bertray import storage
from bertray.errors import ConfigError, OutputError
from bertray.model.bundle import Bundle
from bertray.model.cache import digest_of, model_files
from bertray.model.calibration import move_thresholds
from bertray.model.manifest import Manifest, read_manifest, write_manifest
from bertray.model.publish import publish_bundle
from bertray.schema import DEFAULT_THRESHOLD, Calibration, Cutoff

COPY_OF = "calibration.of"  # in a lineage: the digest of the model that was copied
UNFINISHED = "_copy.json"  # there while the copy is being put: the folder is ours


def check_copy(bundle: Bundle, output: str) -> None:
    """Raise an error if the model cannot be calibrated, or the copy not be put there.

    Raises:
        ConfigError: it gives numbers.
        OutputError: the place holds something else than a copy of the same model.
    """
    if bundle.task == "regression":
        raise ConfigError(
            f"calibration.method: {bundle.source} gives numbers, and probabilities alone can be "
            "calibrated; leave it out"
        )
    manifest = read_manifest(output)
    begun = storage.exists(storage.join(output, UNFINISHED))
    if manifest is None and not begun and not storage.is_empty(output):
        raise OutputError(
            f"calibration.bundle={output} holds files that are no bundle; choose an empty or new "
            "folder"
        )
    if manifest is not None and manifest.lineage.get(COPY_OF) != bundle.digest:
        raise OutputError(
            f"calibration.bundle={output} holds another bundle than a calibrated copy of "
            f"{bundle.source}; choose another folder"
        )


def with_calibration(bundle: Bundle, calibration: Calibration, cutoffs: Sequence[Cutoff]) -> Bundle:
    """The bundle as its copy will be, but for the digest.

    Rows get the independent labels that they had: the thresholds move with the probabilities.
    """
    thresholds = bundle.thresholds
    if bundle.task == "multi_label":
        old = thresholds or (DEFAULT_THRESHOLD,) * len(bundle.labels)
        thresholds = move_thresholds(old, calibration, old=bundle.calibration)
    return replace(bundle, calibration=calibration, cutoffs=tuple(cutoffs), thresholds=thresholds)


def write_copy(bundle: Bundle, output: str) -> str:
    """Put what `with_calibration` gives at ``output``; returns its digest."""
    manifest = read_manifest(str(bundle.folder)) or _manifest_of(bundle)
    manifest = replace(
        manifest,
        calibration=asdict(bundle.calibration) if bundle.calibration is not None else None,
        cutoffs=[asdict(cutoff) for cutoff in bundle.cutoffs],
        thresholds=list(bundle.thresholds) if bundle.thresholds is not None else None,
        lineage={**manifest.lineage, COPY_OF: bundle.digest},
    )
    with tempfile.TemporaryDirectory() as made:
        for path in model_files(bundle.folder):
            shutil.copyfile(path, Path(made) / path.name)
        write_manifest(Path(made), manifest)
        mark = storage.join(output, UNFINISHED)
        storage.put_json(mark, {COPY_OF: bundle.digest}, overwrite=True)
        publish_bundle(Path(made), output, spare=[UNFINISHED])
        storage.remove(mark)
        return digest_of(Path(made))


def _manifest_of(bundle: Bundle) -> Manifest:
    """Of a model that plain transformers saved; equal rows make equal copies whenever."""
    return Manifest(
        labels=list(bundle.labels),
        task=bundle.task,
        max_length=bundle.max_length,
        base=bundle.source,
        metrics={},
        lineage={},
        versions={},
        created="",
    )
