"""``bertray.json``: what a bundle says of itself, beside the files of Hugging Face."""

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bertray import __version__, storage
from bertray.errors import ModelError
from bertray.model.heads import Head
from bertray.schema import Calibration, Task
from bertray.text.long import TRUNCATE, LongText

MANIFEST = "bertray.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """``bertray.json``: what the Hugging Face files do not say.

    Attributes:
        labels: label names in label-id order.
        task: how the logits are read.
        max_length: tokens a row was cut to in training.
        base: what was fine-tuned.
        metrics: of the validation rows, at the epoch that was kept.
        lineage: digests of the training data and settings.
        versions: of the packages that trained it.
        created: UTC time, ISO 8601.
        long_text: what became of longer texts in training.
        thresholds: of independent labels, as the validation rows have them best.
        scale: of a regression model, a `Scale`.
        head: what is on top of the encoder.
        calibration: of the probabilities, a `Calibration`.
        cutoffs: how sure the model must be for a wanted precision, each a `Cutoff`.
    """

    labels: list[str]
    task: Task
    max_length: int
    base: str
    metrics: dict[str, float]
    lineage: dict[str, str]
    versions: dict[str, str]
    created: str
    long_text: LongText = TRUNCATE
    thresholds: list[float] | None = None
    scale: dict[str, float] | None = None
    head: Head = "family"
    calibration: dict[str, Any] | None = None
    cutoffs: list[dict[str, float]] | None = None
    format_version: int = FORMAT_VERSION


def read_manifest(bundle: str) -> Manifest | None:
    """``bertray.json`` of a folder or URI, or None if there is none.

    Raises:
        ModelError: it cannot be read.
    """
    uri = storage.join(bundle, MANIFEST)
    data = storage.get_bytes(uri)
    if data is None:
        return None
    try:
        values = json.loads(data)
        values["long_text"] = LongText(**values.get("long_text", {}))
        return Manifest(**values)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{uri}: cannot be read: {error}; train the bundle anew") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put ``bertray.json`` into a local folder."""
    said = {name: value for name, value in asdict(manifest).items() if value is not None}
    text = json.dumps(said, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def calibration_of(stored: dict[str, Any] | None) -> Calibration | None:
    """Undo ``asdict`` and JSON."""
    if stored is None:
        return None
    vectors = {name: tuple(stored[name]) for name in ("factors", "offsets")}
    return Calibration(**{**stored, **vectors})


def package_versions() -> dict[str, str]:
    """Versions that a bundle remembers."""
    others = ("ray", "torch", "transformers", "pyarrow")
    return {"bertray": __version__, **{name: version(name) for name in others}}
