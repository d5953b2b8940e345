"""The nightly job, read top to bottom.

bertray nightly configs/demo/nightly.yaml
ray job submit -- python jobs/nightly.py configs/demo/nightly.yaml

challenger -> champion -> score what is new -> profile -> drift -> page -> history -> alert
"""

import logging
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from itertools import takewhile

from bertray import storage
from bertray.config import NightlyConfig, ReportConfig, ScoreConfig
from bertray.errors import ModelError
from bertray.lease import Holder, hold
from bertray.model.bundle import Bundle, open_bundle
from bertray.nightly.alert import alert_of_failure, send_alert
from bertray.nightly.challenger import challenge
from bertray.nightly.checks import check, evaluation_of
from bertray.nightly.history import (
    ID,
    INDEX,
    Night,
    history_of,
    lines_of,
    profile_uri,
    put_index,
    put_night,
    put_untold,
    read_nights,
    read_untold,
    reference_of,
)
from bertray.report.run import Report, report
from bertray.score.contract import CONTRACT, read_contract
from bertray.score.manifest import MANIFEST
from bertray.score.run import score
from bertray.score.summary import Progress

logger = logging.getLogger(__name__)

MOST_PAST = 30  # nights that tonight is held against, and that its page lists


@dataclass(frozen=True)
class Outcome:
    """What became of a night.

    Attributes:
        night: None if nothing was new.
        page: of the night, or of the latest one that had something to do.
        index: the page that lists all nights.
        report: of the night.
        num_rows_quarantined: rows of the latest night with new rows that held a text and yet got no
            prediction.
        num_shards_quarantined: shards that are not in the output.
        drifted: signals of the latest night with new rows.
    """

    night: Night | None
    page: str
    index: str
    report: Report | None
    num_rows_quarantined: int
    num_shards_quarantined: int
    drifted: tuple[str, ...]


def nightly(
    config: NightlyConfig,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_wait: Callable[[Holder], None] = lambda holder: None,
) -> Outcome:
    """Score what is new, hold it against other nights, and write the page.

    A night that was cut off anywhere is made up for by the next one: what it scored and did not
    report counts as that one's. A second run finds nothing to do.

    Args:
        config: the job.
        on_progress: called as rows are put in place.
        on_wait: called when another run is at work, before waiting for it.

    Raises:
        UserError: the config, the model, the input or a folder cannot be used.
        ClusterError: Ray failed again and again. What is done is safe.
    """
    alert = alert_of_failure(config.alert, output=config.output.path)
    with alert, hold(history := history_of(config), on_wait=on_wait):
        began, start = datetime.now(UTC), time.perf_counter()
        nights = read_nights(history)
        told = nights[-1].notes if nights else ()
        said = [note for note in read_untold(history) if note not in told]
        said += filter(None, [challenge(config.challenger, on_wait=on_wait)])
        put_untold(history, said)
        notes = [*said]
        job, bundle = choose_model(config, notes)
        check(config, bundle)
        summary = score(job, on_progress=on_progress, on_wait=on_wait)
        digests = astuple(read_contract(config.output.path).digests)
        alike = [night for night in nights if night.digests == digests]
        new = new_files(config.output.path, nights, digests, scored_now=summary.splits_scored)
        night, made, page = None, None, ""
        is_news = not set(said) <= set(told)
        if new or is_news or not alike or summary.quarantined != list(alike[-1].quarantined):
            night_id = f"{began:{ID}}"
            page = storage.join(history, f"{night_id}.html")
            made = report(
                report_config(config, bundle, page, history, alike),
                only=frozenset(new.values()),
                nights=lines_of(history, nights[-MOST_PAST:]),
                notes=notes,
            )
            night = Night(
                id=night_id,
                seconds=time.perf_counter() - start,
                model=bundle.source,
                digests=digests,
                num_rows=summary.num_rows,
                splits=tuple(new),
                num_rows_new=made.num_rows,
                quarantined=tuple(summary.quarantined),
                num_rows_quarantined=made.num_rows_quarantined,
                drifted=tuple(one.signal for one in made.verdicts if one.drifted),
                notes=tuple(notes),
                rows_per_s=made.rows_per_s,
            )
            send_alert(config.alert, night, page=page)  # twice, if it is cut off here; never not
            put_night(history, night, made.profile)
            nights.append(night)
            alike.append(night)
        put_index(history, nights)
        put_untold(history, [])
    latest = next((one for one in reversed(alike) if one.num_rows_new), alike[-1])
    return Outcome(
        night=night,
        page=page or storage.join(history, nights[-1].page),
        index=storage.join(history, INDEX),
        report=made,
        num_rows_quarantined=latest.num_rows_quarantined,
        num_shards_quarantined=len(summary.quarantined),
        drifted=latest.drifted,
    )


def choose_model(config: NightlyConfig, notes: list[str]) -> tuple[ScoreConfig, Bundle]:
    """The champion; or, while the output is to stay one model's, the model that it belongs to.

    Args:
        config: the job.
        notes: takes up that another model stands by, or that all rows are scored anew.
    """
    job = ScoreConfig(**{name: getattr(config, name) for name in ScoreConfig.model_fields})
    bundle = open_bundle(config.model.path, root=config.model.store)
    if not storage.exists(storage.join(config.output.path, CONTRACT)):
        return job, bundle
    there = read_contract(config.output.path)
    if there.model_digest == bundle.digest:
        return job, bundle
    if config.night.on_new_model == "rescore":
        notes.append(f"all rows were scored anew by {bundle.source}; before it {there.model} did")
        output = job.output.model_copy(update={"replace": True})
        return job.model_copy(update={"output": output}), bundle
    former = open_bundle(there.model, root=job.model.store)
    if former.digest != there.model_digest:
        raise ModelError(
            f"model.path={config.model.path}: {there.model} is not the model any more that "
            f"{config.output.path} was scored by, so no night can go on with that; set "
            "night.on_new_model=rescore, or keep models in a store, where none is overwritten"
        )
    notes.append(
        f"{bundle.source} stands by; {config.output.path} goes on with {there.model} until "
        "night.on_new_model=rescore"
    )
    model = job.model.model_copy(update={"path": there.model})
    return job.model_copy(update={"model": model}), former


def new_files(
    output: str, nights: Sequence[Night], digests: tuple[str, str], *, scored_now: Container[str]
) -> dict[str, str]:
    """The scored files that no night has reported, or that were scored again, by split id.

    Args:
        output: the folder.
        nights: all of them. What came before another model or other settings is no longer there.
        digests: of the model and of the settings that the folder belongs to.
        scored_now: ids of the splits that this run has scored.
    """
    lately = takewhile(lambda night: night.digests == digests, reversed(nights))
    reported = {split for night in lately for split in night.splits}
    files = (storage.get_json(storage.join(output, MANIFEST)) or {})["files"]
    return {
        file["split"]: file["path"]
        for file in files
        if file["split"] not in reported or file["split"] in scored_now
    }


def report_config(
    config: NightlyConfig, bundle: Bundle, page: str, history: str, nights: Sequence[Night]
) -> ReportConfig:
    """What the page is made with.

    Args:
        config: the job.
        bundle: the model that scored.
        page: where it goes.
        history: where nights are kept.
        nights: of the same model and settings.
    """
    reference = reference_of(history, nights)
    fine = [
        night
        for night in nights
        if night.num_rows_new and night is not reference and not night.trouble
    ]
    return ReportConfig.model_validate(
        {
            "input": {
                "path": config.output.path,
                "reference": None if reference is None else profile_uri(history, reference),
                "past": [profile_uri(history, night) for night in fine[-MOST_PAST:]],
                "evaluation": evaluation_of(config),
                "label": config.night.label,
                "sample_rows": config.night.sample_rows,
            },
            "model": {"path": bundle.source, "store": config.model.store},
            "explain": config.explain.model_dump(),
            "output": {"path": page},
        }
    )
