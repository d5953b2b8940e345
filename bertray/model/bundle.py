"""The model folder: a Hugging Face sequence-classification folder, and ``bertray.json`` beside it.

A bundle is what training writes and scoring reads. Any Hugging Face sequence-classification folder
or hub id is read as one too: without ``bertray.json`` its own config says the labels.
"""

import json
import logging
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from bertray import __version__, storage
from bertray.errors import ConfigError, ModelError
from bertray.model import versions
from bertray.model.cache import digest_of, with_safetensors
from bertray.model.heads import Head, load_classifier
from bertray.schema import Calibration, Cutoff, Scale, Task
from bertray.text.long import TRUNCATE, LongText

if TYPE_CHECKING:  # three seconds of imports, which an actor with ONNX Runtime needs not
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

MANIFEST = "bertray.json"
WORD_PIECES = "vocab.txt"
FORMAT_VERSION = 1
_PAIR, _NO_PAIR = "data.text_pair", "null"  # in a lineage, where values are JSON
LONGEST = 512  # for models that name no limit of their own
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
    names = cast(dict[int, str], config.id2label or {})
    return Bundle(
        source,
        location,
        folder,
        labels=tuple(names.get(index, f"LABEL_{index}") for index in range(config.num_labels or 0)),
        task=task,
        max_length=longest_input(config, load_tokenizer(folder, key=key)),
        digest=digest,
    )


def check_pairs(bundle: Bundle, text_pair: str | None, *, section: str) -> None:
    """Raise ConfigError if a model of pairs is to read single texts, or the other way round.

    Args:
        bundle: the model.
        text_pair: the setting.
        section: of the config that it stands in.
    """
    if bundle.takes_pairs in (None, text_pair is not None):
        return
    if bundle.takes_pairs:
        advice = f"pairs of texts; set {section}.text_pair to the column of the second ones"
    else:
        advice = f"single texts; leave {section}.text_pair={text_pair} out"
    raise ConfigError(f"model.path={bundle.source} was trained on {advice}")


def load_model(bundle: Bundle, *, dtype: torch.dtype = torch.float32) -> "PreTrainedModel":
    """The model in evaluation mode, on the CPU.

    Raises:
        ModelError: the weights lack a part, such as the head, or do not fit the config.
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
    return cast("PreTrainedModel", model.eval())  # type: ignore[no-untyped-call]


def load_tokenizer(folder: Path, *, key: str = "model.path") -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    That of a family that has another kind finds nothing in a ``vocab.txt``, and would not know a
    single word. There it is read as what it is, BERT's word pieces.

    Raises:
        ModelError: its files are missing or broken.
    """
    words = folder / WORD_PIECES
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if not _knows_words(tokenizer) and words.exists():
            pieces = [piece for piece in words.read_text("utf-8").split() if piece[0] != "["]
            is_cased = any(piece != piece.lower() for piece in pieces)
            options: dict[str, Any] = {"do_lower_case": False} if is_cased else {}
            tokenizer = BertTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{key}={folder}: no tokenizer can be loaded: {error}") from error
    if not _knows_words(tokenizer):
        raise ModelError(
            f"{key}={folder}: a {type(tokenizer).__name__} finds no vocabulary in there; "
            "put the tokenizer's files beside the weights, such as tokenizer.json"
        )
    return cast(PreTrainedTokenizerBase, tokenizer)


def _knows_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    return len(tokenizer) > len(tokenizer.all_special_tokens)


def longest_input(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens the model takes at most; 512 where neither config nor tokenizer says.

    RoBERTa-like models count positions from ``padding_idx + 1``, so that many are never used.
    """
    limits = [longest] if (longest := num_positions(config)) else []
    if tokenizer.model_max_length < 1_000_000:  # an unset limit is 1e30
        limits.append(int(tokenizer.model_max_length))
    return min(limits) if limits else LONGEST


def num_positions(config: PretrainedConfig) -> int | None:
    """Tokens beyond which the model has no position embedding; None if it needs none."""
    positions = getattr(config, "max_position_embeddings", None)
    if not positions or getattr(config, "position_embedding_type", "absolute") != "absolute":
        return None
    offset = (config.pad_token_id or 0) + 1 if config.model_type in _OFFSET_POSITIONS else 0
    return int(positions) - offset


_OFFSET_POSITIONS = frozenset(
    {"roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "data2vec-text", "ernie_m"}
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
    from importlib.metadata import version

    others = ("ray", "torch", "transformers", "pyarrow")
    return {"bertray": __version__, **{name: version(name) for name in others}}


def read_config(folder: Path, *, source: str, key: str) -> PretrainedConfig:
    """The Hugging Face config of a model folder.

    Raises:
        ModelError: it is broken, or of a family that transformers does not know.
    """
    with quiet():
        try:
            return cast(PretrainedConfig, AutoConfig.from_pretrained(folder))
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{key}={source}: config.json cannot be used: {error}") from error


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


def _task_of(config: PretrainedConfig) -> Task:
    if config.problem_type == "multi_label_classification":
        return "multi_label"
    if config.problem_type == "regression" or config.num_labels == 1:
        return "regression"
    return "single_label"


@contextmanager
def quiet() -> Any:
    """Hold back transformers' load reports and progress bars: our errors say what matters."""
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()  # type: ignore[no-untyped-call]
