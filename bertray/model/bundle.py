"""The model folder: a Hugging Face sequence-classification folder, and ``bertray.json`` beside it.

A bundle is what training writes and scoring reads. Any Hugging Face sequence-classification folder
or hub id is read as one too: without ``bertray.json`` its own config says the labels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from bertray.errors import ConfigError, ModelError
from bertray.model import versions
from bertray.model.cache import digest_of, with_safetensors
from bertray.model.heads import Head, load_classifier
from bertray.model.manifest import Manifest, calibration_of, read_manifest, write_manifest
from bertray.model.pretrained import load_tokenizer, longest_input, quiet, read_config
from bertray.model.steady import make_steady
from bertray.schema import Calibration, Cutoff, Scale, Task
from bertray.text.long import TRUNCATE, LongText

if TYPE_CHECKING:  # three seconds of imports, which an actor with ONNX Runtime needs not
    from transformers import PreTrainedModel

_PAIR, _NO_PAIR = "data.text_pair", "null"  # in a lineage, where values are JSON
PROBLEM_TYPES: dict[Task, str] = {  # what Hugging Face calls them in config.json
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


@dataclass(frozen=True)
class Bundle:
    """A model folder on local disk, looked into but not loaded.

    Attributes:
        source: what the user called it; in a store the version that this was.
        location: the same, as any process of the cluster can use it: local paths made absolute.
        folder: where its files lie; a copy in the local cache if they had to be converted.
        labels: label names in label-id order.
        task: how the logits are read.
        max_length: tokens a row is cut to unless a setting says otherwise.
        digest: sha256 over the names and contents of the model's files.
        long_text: what becomes of longer texts, unless a setting says otherwise.
        thresholds: of independent labels, the least probability at which a row has each; None for
            0.5 throughout.
        scale: of a regression model; None if its output is the score itself.
        takes_pairs: whether it was trained on pairs of texts; None if nothing tells.
        head: what is on top of the encoder.
        calibration: of the probabilities; None for the model's own.
        cutoffs: by wanted precision; none where nothing was measured, or no row has one label.
    """

    source: str
    location: str
    folder: Path
    labels: tuple[str, ...]
    task: Task
    max_length: int
    digest: str
    long_text: LongText = TRUNCATE
    thresholds: tuple[float, ...] | None = None
    scale: Scale | None = None
    takes_pairs: bool | None = None
    head: Head = "family"
    calibration: Calibration | None = None
    cutoffs: tuple[Cutoff, ...] = ()


def open_bundle(source: str, *, key: str = "model.path", root: str | None = None) -> Bundle:
    """Find a model and look into it.

    Args:
        source: a folder, a URI (copied to the local cache), a hub id, or a version in a store or
            in MLflow's registry.
        key: the setting that named it, for messages.
        root: of the store or the registry.

    Raises:
        ConfigError: it is in a store, and which one is not said.
        ModelError: there is no such model, or it is no sequence-classification model; or its files
            are not those that were put into the store.
    """
    version = versions.find(root, source, key=key) if versions.is_reference(source) else None
    place = source
    if version is not None:
        source, place = version.reference, version.location
    folder = versions.fetch(place, key=key)
    location = str(folder) if Path(place).expanduser().exists() else place
    digest = digest_of(folder)
    if version is not None and version.digest not in (None, digest):
        raise ModelError(
            f"{key}={source}: {place} holds other files (digest {digest[:12]}) than were put there "
            f"(digest {version.digest[:12]}); restore them, or name another version"
        )
    folder = with_safetensors(folder, digest, source=source)
    config = read_config(folder, source=source, key=key)
    manifest = read_manifest(str(folder))
    if manifest is not None:
        thresholds = tuple(manifest.thresholds) if manifest.thresholds is not None else None
        return Bundle(
            source,
            location,
            folder,
            labels=tuple(manifest.labels),
            task=manifest.task,
            max_length=manifest.max_length,
            digest=digest,
            long_text=manifest.long_text,
            thresholds=thresholds,
            scale=Scale(**manifest.scale) if manifest.scale is not None else None,
            takes_pairs=manifest.lineage[_PAIR] != _NO_PAIR if _PAIR in manifest.lineage else None,
            head=manifest.head,
            calibration=calibration_of(manifest.calibration),
            cutoffs=tuple(Cutoff(**cutoff) for cutoff in manifest.cutoffs or ()),
        )
    if not any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
        raise ModelError(
            f"{key}={source}: a {'/'.join(config.architectures or ['model'])} has no "
            "classification head; fine-tune it first with `bertray train model.base=...`"
        )
    task = _task_of(config)
    if task == "regression" and config.num_labels != 1:
        raise ModelError(
            f"{key}={source}: a regression model of {config.num_labels} numbers; "
            "take one that gives a single number"
        )
    names = cast(dict[int, Any], config.id2label or {})
    if sorted(names) != list(range(len(names))):
        raise ModelError(
            f"{key}={source}: id2label of config.json names outputs {sorted(names)}, where a model "
            f"of {len(names)} has 0 to {len(names) - 1}; number the labels as the outputs are"
        )
    return Bundle(
        source,
        location,
        folder,
        labels=tuple(str(names[index]) for index in range(len(names))),
        task=task,
        max_length=longest_input(config, load_tokenizer(folder, key=key)),
        digest=digest,
    )


def check_pairs(
    bundle: Bundle, text_pair: str | None, *, section: str, key: str = "model.path"
) -> None:
    """Raise ConfigError if a model of pairs is to read single texts, or the other way round.

    Args:
        bundle: the model.
        text_pair: the setting.
        section: of the config that it stands in.
        key: the setting that named the model, for messages.
    """
    if bundle.takes_pairs in (None, text_pair is not None):
        return
    if bundle.takes_pairs:
        advice = f"pairs of texts; set {section}.text_pair to the column of the second ones"
    else:
        advice = f"single texts; leave {section}.text_pair={text_pair} out"
    raise ConfigError(f"{key}={bundle.source} was trained on {advice}")


def load_model(bundle: Bundle, *, dtype: torch.dtype = torch.float32) -> "PreTrainedModel":
    """The model in evaluation mode, on the CPU.

    Raises:
        ModelError: the weights lack a part, such as the head, do not fit the config, or hold
            positions that transformers leaves out.
    """
    with quiet():
        try:
            model, report = load_classifier(bundle.folder, head=bundle.head, dtype=dtype)
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"{bundle.source}: the weights cannot be loaded: {error}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{bundle.source}: the weights lack {', '.join(missing[:4])}"
            f"{' and more' if len(missing) > 4 else ''}; this is no fine-tuned classifier: "
            "fine-tune it first with `bertray train model.base=...`"
        )
    check_positions(report, source=bundle.source)
    make_steady(model)
    return cast("PreTrainedModel", model.eval())  # type: ignore[no-untyped-call]


def check_positions(report: dict[str, Any], *, source: str) -> None:
    """Raise ModelError for weights of relative positions, which transformers 5 has no code for.

    Args:
        report: of the loading, from `load_classifier`.
        source: what the user called the model, for the message.
    """
    unread = sorted(name for name in report["unexpected_keys"] if "distance_embedding" in name)
    if unread:
        raise ModelError(
            f"{source}: transformers no longer reads {unread[0]}, the relative positions of models "
            "with position_embedding_type=relative_key or relative_key_query, and without them all "
            "numbers would be others; take a model with position_embedding_type=absolute"
        )


def save_bundle(
    folder: Path,
    *,
    model: "PreTrainedModel",
    tokenizer: PreTrainedTokenizerBase,
    manifest: Manifest,
) -> None:
    """Write a bundle into an existing local folder: safetensors, tokenizer, ``bertray.json``."""
    model.config.id2label = dict(enumerate(manifest.labels))
    model.config.label2id = {label: index for index, label in enumerate(manifest.labels)}
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    write_manifest(folder, manifest)


def _task_of(config: PretrainedConfig) -> Task:
    if config.problem_type == "multi_label_classification":
        return "multi_label"
    if config.problem_type == "regression" or config.num_labels == 1:
        return "regression"
    return "single_label"
