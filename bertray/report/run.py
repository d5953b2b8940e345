"""The report, read top to bottom.

bertray report OUTPUT [key=value ...]

scored folder -> sample -> profile -> drift, truth, examples -> one page
"""

import logging
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from bertray import storage
from bertray.config import ReportConfig
from bertray.errors import DataError, ModelError, SchemaError, UserError
from bertray.model.bundle import Bundle, open_bundle
from bertray.model.pretrained import load_tokenizer
from bertray.report.drift import Verdict, compare
from bertray.report.examples import Example, explained
from bertray.report.explain import Explainer
from bertray.report.known import compare_with_truth, name_labels
from bertray.report.nights import NightLine
from bertray.report.origin import origin_of
from bertray.report.page import Content, render
from bertray.report.profile import Profile, profile_of
from bertray.report.scored import Scored, open_scored, sample_rows
from bertray.schema import scored_column_names
from bertray.text.encoding import Encoder

logger = logging.getLogger(__name__)

PAGE, PROFILE = "_report.html", "_profile.json"
MOST_TOKENS = 512  # of a text that are looked at for unknown ones

UnknownShares = Callable[[pa.ChunkedArray], np.ndarray]


@dataclass(frozen=True)
class Report:
    """What was put on a page.

    Attributes:
        page: where it lies.
        num_rows: of the scored folder.
        num_quarantined: shards that are not in there.
        num_rows_quarantined: rows that held a text and yet got no prediction.
        verdicts: of the signals that could be compared.
        num_examples: rows explained.
        profile: what the rows were like.
        rows_per_s: at which they were scored; None if nothing tells.
    """

    page: str
    num_rows: int
    num_quarantined: int
    num_rows_quarantined: int
    verdicts: tuple[Verdict, ...]
    num_examples: int
    profile: Profile
    rows_per_s: float | None


def report(
    config: ReportConfig,
    *,
    only: Container[str] | None = None,
    nights: Sequence[NightLine] = (),
    notes: Sequence[str] = (),
) -> Report:
    """Write the page, and the night's profile beside the shards for other nights' reports.

    Args:
        config: the job.
        only: names of the scored files that it is about, those of a night, which may lack labels
            that can be used; all by default.
        nights: that are listed, the latest first.
        notes: what else there is to know.

    Raises:
        UserError: the folder, the model or one of the other nights cannot be used.
    """
    source = config.input
    scored = open_scored(source.path, only=only)
    missing: list[str] = []
    bundle = find_model(config, scored, missing)
    unknown = unknown_shares(bundle) if bundle is not None else None
    rows = sampled(config, scored)
    label = source.label if rows.num_rows else None
    if rows.num_rows and scored.text not in rows.column_names:
        missing.append(
            f"The shards do not hold the column {scored.text!r}: nothing is said of texts."
        )
    if label is not None:
        labels = bundle.labels if bundle is not None else None
        if labels is None:
            missing.append(f"Nobody checked that {label!r} holds labels that the model knows.")
        try:
            rows = name_labels(rows, scored, label, labels=labels)
        except UserError as error:
            if only is None:
                raise
            missing.append(f"Tonight's rows were not held against true labels: {error}")
            label = None
    profile = night_profile(scored, rows, unknown)
    storage.put_json(storage.join(source.path, PROFILE), profile.to_json(), overwrite=True)
    reference = find_profile(source.reference, config, unknown) if source.reference else None
    past = [find_profile(path, config, unknown) for path in source.past]
    verdicts = compare(profile, reference, past, seed=source.seed) if reference is not None else []
    examples: list[Example] = []
    if config.explain.num_rows and bundle is not None and rows.num_rows:
        examples = explained(
            rows,
            scored,
            Explainer(bundle),
            num_rows=config.explain.num_rows,
            label=label,
            seed=source.seed,
        )
    content = Content(
        scored=scored,
        profile=profile,
        reference=reference,
        reference_name=source.reference or "",
        verdicts=verdicts,
        known=compare_with_truth(rows, scored, label) if label is not None else None,
        evaluation=find_evaluation(source.evaluation),
        examples=examples,
        origin=origin_of(bundle, root=config.model.store) if bundle is not None else [],
        num_sampled=rows.num_rows,
        missing=missing,
        nights=nights,
        notes=notes,
        is_night=only is not None,
    )
    page = config.output.path or storage.join(source.path, PAGE)
    storage.put_bytes(page, render(content).encode(), overwrite=True)
    return Report(
        page=page,
        num_rows=scored.num_rows,
        num_quarantined=len(scored.manifest["quarantined"]),
        num_rows_quarantined=scored.num_rows_quarantined,
        verdicts=tuple(verdicts),
        num_examples=len(examples),
        profile=profile,
        rows_per_s=scored.rows_per_s if scored.num_rows else None,
    )


def sampled(config: ReportConfig, scored: Scored) -> pa.Table:
    """Rows of the folder, with what the page needs of them."""
    source = config.input
    others = (scored.text, scored.text_pair, source.label)
    columns = [*scored_column_names(scored.prefix, scored.task), *filter(None, others)]
    rows = sample_rows(scored, columns=columns, num_rows=source.sample_rows, seed=source.seed)
    texts = [name for name in (scored.text, scored.text_pair) if name is not None]
    absent = [name for name in texts if name not in rows.column_names]
    if config.explain.num_rows and rows.num_rows and absent:
        raise SchemaError(
            f"explain.num_rows={config.explain.num_rows}: the shards of {source.path} do not hold "
            f"the column {absent[0]!r}; leave it out, or score with it in input.columns"
        )
    return rows


def find_model(config: ReportConfig, scored: Scored, missing: list[str]) -> Bundle | None:
    """The model that scored, if it can be found; explanations need it, the rest does without.

    Raises:
        ModelError: it was asked for and cannot be used, or is another one.
    """
    path = config.model.path or scored.contract.model
    wanted = config.model.path is not None or config.explain.num_rows > 0
    try:
        bundle = open_bundle(path, root=config.model.store)
        if bundle.digest != scored.contract.model_digest:
            raise ModelError(
                f"model.path={path}: digest {bundle.digest[:12]}, and {scored.path} was scored by "
                f"{scored.contract.model_digest[:12]}; set model.path to that model"
            )
    except UserError as error:
        if wanted:
            raise
        missing.append(f"Unknown tokens were not counted: {error}")
        return None
    max_length = scored.contract.settings["model"]["max_length"]
    return replace(bundle, max_length=max_length or bundle.max_length)


def unknown_shares(bundle: Bundle) -> UnknownShares | None:
    """What counts the tokens that a model does not know; None if it knows all, by bytes."""
    tokenizer = load_tokenizer(bundle.folder)
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return None
    encoder = Encoder(tokenizer, max_length=MOST_TOKENS)
    num_special = tokenizer.num_special_tokens_to_add()

    def shares(texts: pa.ChunkedArray) -> np.ndarray:
        encoded = encoder(texts)
        is_unknown = np.concatenate([[0], np.cumsum(encoded.input_ids == unknown)])
        found = is_unknown[encoded.offsets[1:]] - is_unknown[encoded.offsets[:-1]]
        return np.asarray(found / np.maximum(encoded.lengths - num_special, 1))

    return shares


def night_profile(scored: Scored, rows: pa.Table, unknown: UnknownShares | None) -> Profile:
    """A profile by a sample of rows, but by all rows where the folder keeps count of them."""
    profile = Profile(0, {})
    if rows.num_rows:
        profile = profile_of(
            rows, task=scored.task, prefix=scored.prefix, text=scored.text, unknown_shares=unknown
        )
    known = {"status": dict(scored.status_counts.most_common())}
    if scored.task == "single_label":
        known["label"] = dict(scored.label_counts.most_common())
    counts = {signal: found for signal, found in {**profile.counts, **known}.items() if found}
    return replace(profile, num_rows=scored.num_rows, counts=counts)


def find_profile(path: str, config: ReportConfig, unknown: UnknownShares | None) -> Profile:
    """Another night's profile: from a file, from beside its shards, or made of these now."""
    uri = path if path.endswith(".json") else storage.join(path, PROFILE)
    values = storage.get_json(uri)
    if values is not None:
        return Profile.from_json(values, where=uri)
    if uri == path:
        raise DataError(f"{path}: no such profile; name scored shards, or a {PROFILE}")
    night = open_scored(path)
    columns = [*scored_column_names(night.prefix, night.task), night.text]
    source = config.input
    rows = sample_rows(night, columns=columns, num_rows=source.sample_rows, seed=source.seed)
    return night_profile(night, rows, unknown)


def find_evaluation(path: str | None, *, key: str = "input.evaluation") -> dict[str, object] | None:
    """metrics.json of an evaluation.

    Args:
        path: its output folder.
        key: the setting that names it, for messages.

    Raises:
        DataError: there is none.
    """
    if path is None:
        return None
    found = storage.get_json(storage.join(path, "metrics.json"))
    if not isinstance(found, dict):
        raise DataError(
            f"{key}={path}: no metrics.json in there; name an output.path of bertray evaluate"
        )
    return found
