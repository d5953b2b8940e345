"""The page: one HTML file that opens offline. All text is escaped, and nothing runs.

What is on it is put together here; how it looks is in page.html.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from bertray import __version__
from bertray.report import charts
from bertray.report.charts import percent
from bertray.report.drift import FALSE_ALARMS, MIN_NIGHTS, Verdict
from bertray.report.examples import NUM_STRENGTHS, Example
from bertray.report.known import MOST_LABELS, Known
from bertray.report.nights import NightLine, courses
from bertray.report.profile import Profile
from bertray.report.scored import Scored
from bertray.report.signals import NAMES, UNITS, bin_name, shown_bins
from bertray.schema import OK
from bertray.score.commits import is_bad

MOST_NAMES = 40  # of shards that are listed
STAGES = {
    "read": "read shards",
    "tokenize": "tokenize",
    "transfer": "to the device",
    "compute": "classify",
    "write": "write shards",
}


@dataclass(frozen=True)
class Content:
    """All that a page may show.

    Attributes:
        scored: the folder it is about.
        profile: of tonight's rows.
        reference: of those of the night it is compared with.
        reference_name: where that lies.
        verdicts: of the signals that both have.
        known: what true labels among the scored rows say.
        evaluation: metrics.json.
        examples: explained rows.
        origin: what the model went through.
        num_sampled: rows that were read for the profile.
        missing: what could not be shown, and why.
        nights: other nights, the latest first.
        notes: what else there is to know.
        is_night: whether it is about what is new in the folder, not about all of it.
    """

    scored: Scored
    profile: Profile
    reference: Profile | None
    reference_name: str
    verdicts: Sequence[Verdict]
    known: Known | None
    evaluation: Mapping[str, Any] | None
    examples: Sequence[Example]
    origin: Sequence[tuple[str, str]]
    num_sampled: int
    missing: Sequence[str]
    nights: Sequence[NightLine] = ()
    notes: Sequence[str] = ()
    is_night: bool = False


def render(content: Content) -> str:
    """The page as HTML."""
    scored = content.scored
    return _template("page.html").render(
        content=content,
        scored=scored,
        version=__version__,
        title=f"{scored.num_rows:,} {'new ' if content.is_night else ''}rows by "
        f"{_last_part(scored.contract.model)}",
        ended=_ended(scored),
        headline=_headline(content),
        facts=_facts(content),
        statuses=_statuses(scored),
        quarantined=scored.manifest["quarantined"][:MOST_NAMES],
        num_more=max(0, len(scored.manifest["quarantined"]) - MOST_NAMES),
        stages=_stages(scored),
        distributions=_distributions(content),
        verdicts=[(NAMES[one.signal], one, _moved(one)) for one in content.verdicts],
        truths=_truths(content),
        most_labels=MOST_LABELS,
        settings=_flat(scored.contract.settings),
        false_alarms=FALSE_ALARMS,
        min_nights=MIN_NIGHTS,
        strengths=range(1, NUM_STRENGTHS + 1),
        courses=courses([_tonight(content), *content.nights]),
    )


def render_index(nights: Sequence[NightLine], *, place: str) -> str:
    """The page that lists nights, the latest first, as HTML."""
    return _template("index.html").render(
        nights=nights, courses=courses(nights), place=place, version=__version__
    )


def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("bertray.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {"count": "{:,}".format, "share": percent, "duration": duration}
    return environment.get_template(name)


def _headline(content: Content) -> list[tuple[str, str]]:
    """What to know first, each with whether it is good, bad or worth a look."""
    scored = content.scored
    quarantined, lost = len(scored.manifest["quarantined"]), scored.num_rows_quarantined
    lines = []
    if quarantined:
        lines.append(("bad", f"{_plural(quarantined, 'shard')} could not be scored"))
    if lost:
        lines.append(("bad", f"{_plural(lost, 'row')} could not be classified"))
    if not scored.complete and not quarantined:
        lines.append(("bad", "a run is at work on the folder, or was cut off"))
    if not lines:
        lines.append(("good", "every row of every shard is here"))
    drifted = [NAMES[one.signal] for one in content.verdicts if one.drifted]
    if drifted:
        lines.append(("look", f"not as on other nights: {', '.join(drifted)}"))
    elif content.verdicts:
        lines.append(("good", "nothing drifted"))
    return lines + [("look", note) for note in content.notes]


def _facts(content: Content) -> list[tuple[str, str]]:
    """The figures at the top."""
    scored, run = content.scored, content.scored.run
    facts = []
    if scored.num_rows_in is not None:
        facts += [("rows in", f"{scored.num_rows_in:,}")]
    facts += [("rows out", f"{scored.num_rows_folder:,}")]
    if content.is_night:
        facts += [("of these new", f"{scored.num_rows:,}")]
    facts += [("with a prediction", percent(scored.status_counts[OK] / max(scored.num_rows, 1)))]
    facts += [("shards left out", f"{len(scored.manifest['quarantined']):,}")]
    if run is not None and scored.rows_per_s is not None:
        facts += [
            ("scored by the last run", f"{run['rows_scored']:,}"),
            ("took", duration(run["seconds"])),
            ("rows a second", f"{scored.rows_per_s:,.0f}"),
        ]
    if not content.is_night:
        facts += [("scored files", f"{len(scored.manifest['files']):,}")]
    return facts


def _tonight(content: Content) -> NightLine:
    """The night that the page is about, as the others are listed."""
    scored = content.scored
    lines = _headline(replace(content, notes=()))
    return NightLine(
        name="tonight",
        day="tonight",
        page="",
        model=scored.contract.model,
        num_rows=scored.num_rows,
        seconds=scored.run["seconds"] if scored.run is not None else 0.0,
        rows_per_s=scored.rows_per_s if scored.num_rows else None,
        profile=content.profile,
        trouble="; ".join(line for kind, line in lines if kind != "good"),
    )


def _ended(scored: Scored) -> str | None:
    """When the last run ended."""
    if scored.run is None:
        return None
    return f"{datetime.fromisoformat(scored.run['ended']):%-d %b %Y, %H:%M} UTC"


def _statuses(scored: Scored) -> list[tuple[str, int, str]]:
    """Rows by status: how many, and what kind of status it is."""

    def kind(status: str) -> str:
        return "bad" if is_bad(status) else "plain"

    return [(status, count, kind(status)) for status, count in scored.status_counts.most_common()]


def _stages(scored: Scored) -> dict[str, Any] | None:
    """Where the last run's time went."""
    run = scored.run
    if run is None or run["pool"] is None:
        return None
    seconds = {words: run["stats"].get(f"{name}_s", 0.0) for name, words in STAGES.items()}
    if not sum(seconds.values()):
        return None
    pool, title = run["pool"], "Time that each stage was busy"
    total = sum(seconds.values())
    texts = [f"{duration(value)} · {percent(value / total)}" for value in seconds.values()]
    return {
        "chart": charts.stages_chart(seconds, texts=texts, title=title),
        "rows": list(zip(seconds, texts, strict=True)),
        "actors": f"{_plural(pool['max_actors'], 'actor')} on {pool['device'].upper()}",
        "notes": run["notes"],
    }


def _distributions(content: Content) -> list[dict[str, Any]]:
    """A chart of each signal that has more than one bin, and the same as a table."""
    tonight, reference = content.profile, content.reference
    shown = []
    for signal, name in NAMES.items():
        ours = tonight.counts.get(signal)
        if not ours or signal == "status":  # which has its table already
            continue
        before = reference.counts.get(signal, {}) if reference is not None else {}
        compared = bool(before)
        bins = shown_bins(signal, ours, before)
        title = f"{name}, share of rows{', tonight and on the reference night' * compared}"
        if signal in UNITS:
            unit = UNITS[signal]
            chart = charts.histogram_chart(bins, title=title, compared=compared, unit=unit)
        else:
            chart = charts.shares_chart(bins, title=title, compared=compared)
        if len(bins) > 1:
            shown.append({"name": name, "chart": chart, "bins": bins, "compared": compared})
    return shown


def _moved(verdict: Verdict) -> str:
    """The bin whose share changed most, in words."""
    one = verdict.largest
    before, now = percent(one.reference), percent(one.tonight)
    if before == now:
        return "hardly any"
    return f"{charts.shortened(bin_name(verdict.signal, one.name))}: {before} → {now}"


def _truths(content: Content) -> list[dict[str, Any]]:
    """What true labels say, those beside the scored rows and those of an evaluation alike."""
    found = []
    if (known := content.known) is not None:
        caption = f"{known.num_rows:,} scored rows that have a true label"
        found.append(
            {
                "caption": caption,
                "metrics": known.metrics,
                "warning": "",
                "calibration": _calibration(known.confidence, known.accuracy, of=caption),
                "labels": known.labels,
                "confusion": known.confusion,
            }
        )
    if (evaluation := content.evaluation) is not None:
        same = evaluation["model_digest"] == content.scored.contract.model_digest
        bins = [one for one in evaluation.get("reliability", ()) if one["rows"]]
        confusion = evaluation.get("confusion", {"labels": (), "rows": ()})
        shown = len(confusion["labels"]) <= MOST_LABELS
        rows = _plural(evaluation["rows_evaluated"], "row")
        caption = f"Evaluation on {evaluation['data']}, {rows}"
        found.append(
            {
                "caption": caption,
                "metrics": evaluation["metrics"],
                "warning": "" if same else "of another model",
                "calibration": _calibration(
                    [one["probability"] for one in bins],
                    [one["right"] for one in bins],
                    of=caption,
                ),
                "labels": confusion["labels"] if shown else (),
                "confusion": confusion["rows"],
            }
        )
    return found


def _calibration(
    confidence: Sequence[float], accuracy: Sequence[float], *, of: str
) -> dict[str, Any] | None:
    if not confidence:
        return None
    title = f"Share of labels that is right, by the probability that the model gave them. {of}"
    return {
        "chart": charts.reliability_chart(confidence, accuracy, title=title),
        "points": list(zip(confidence, accuracy, strict=True)),
    }


def duration(seconds: float) -> str:
    """A time to read."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _last_part(model: str) -> str:
    return model.rstrip("/").rsplit("/", 1)[-1]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            rows.append((f"{prefix}{key}", str(value)))
    return rows
