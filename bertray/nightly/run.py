"""The nightly job, read top to bottom.

bertray nightly configs/demo/nightly.yaml
ray job submit -- python jobs/nightly.py configs/demo/nightly.yaml

challenger -> champion -> score what is new -> what it is like -> drift -> page -> history -> alert
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from bertray import storage
from bertray.config import NightlyConfig, ReportConfig, ScoreConfig
from bertray.model.bundle import Bundle, open_bundle
from bertray.nightly.alert import send_alert
from bertray.nightly.challenger import challenge
from bertray.nightly.history import MOST_PAST, Night, alike, put_night, read_nights
from bertray.report.run import Report, make_report
from bertray.score.contract import CONTRACT, contract_of, read_contract
from bertray.score.lease import Holder, hold
from bertray.score.manifest import MANIFEST
from bertray.score.run import score
from bertray.score.summary import Progress, Summary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of a night.

    Attributes:
        night: None if nothing was new.
        page: of the night, or of the latest one that had something to do; None before the first.
        report: of the night.
    """

    night: Night | None
    page: str | None
    report: Report | None = None


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
    history = history_of(config)
    with hold(history, on_wait=on_wait):
        start, began = time.perf_counter(), datetime.now(UTC)
        nights = read_nights(history)
        notes = [said] if (said := challenge(config.challenger)) else []
        job, bundle = choose_model(config, notes)
        summary = score(job, on_progress=on_progress, on_wait=on_wait)
        digests = contract_of(job, bundle).digests
        earlier = alike(nights, (digests.model, digests.settings))
        new = new_files(config.output.path, earlier)
        if not new and earlier and same_trouble(summary, earlier[-1]):
            return Outcome(None, storage.join(history, nights[-1].page))
        night_id = f"{began:%Y%m%dT%H%M%S}"
        page = storage.join(history, f"{night_id}.html")
        report = make_report(
            report_config(config, page),
            only=frozenset(new.values()),
            reference=earlier[0].profile if earlier else None,
            reference_name=f"night {earlier[0].id}" if earlier else "",
            past=[night.profile for night in earlier[1:] if night.is_fine][-MOST_PAST:],
            notes=notes,
        )
        night = Night(
            id=night_id,
            seconds=time.perf_counter() - start,
            model=bundle.source,
            digests=(digests.model, digests.settings),
            num_rows=summary.num_rows,
            splits=tuple(new),
            num_rows_new=report.profile.num_rows,
            quarantined=tuple(summary.quarantined),
            num_rows_quarantined=summary.num_rows_quarantined,
            drifted=tuple(one.signal for one in report.verdicts if one.drifted),
            profile=report.profile,
            notes=tuple(notes),
        )
        put_night(history, night)
    send_alert(config.alert, night, page=page)
    return Outcome(night, page, report)


def history_of(config: NightlyConfig) -> str:
    """Where nights are kept: beside the scored shards unless told."""
    return config.history.path or f"{config.output.path.rstrip('/')}-nights"


def choose_model(config: NightlyConfig, notes: list[str]) -> tuple[ScoreConfig, Bundle]:
    """The champion; or, while the output is to stay one model's, the model that it belongs to.

    Args:
        config: the job.
        notes: takes up that a newer model stands by.
    """
    sections = ("model", "text", "input", "abstain", "pool", "output")
    job = ScoreConfig(**{name: getattr(config, name) for name in sections})
    bundle = open_bundle(config.model.path, root=config.model.store)
    if not storage.exists(storage.join(config.output.path, CONTRACT)):
        return job, bundle
    there = read_contract(config.output.path)
    if there.model_digest == bundle.digest:
        return job, bundle
    if config.night.on_new_model == "rescore":
        output = job.output.model_copy(update={"replace": True})
        notes.append(f"all rows were scored anew by {bundle.source}, before it by {there.model}")
        return job.model_copy(update={"output": output}), bundle
    notes.append(
        f"{bundle.source} stands by; {config.output.path} goes on with {there.model} until "
        "night.on_new_model=rescore"
    )
    model = job.model.model_copy(update={"path": there.model})
    return job.model_copy(update={"model": model}), open_bundle(there.model, root=model.store)


def new_files(output: str, nights: list[Night]) -> dict[str, str]:
    """The scored files that no earlier night has reported, by the id of their split."""
    manifest = storage.get_json(storage.join(output, MANIFEST)) or {"files": []}
    reported = {split for night in nights for split in night.splits}
    return {
        file["split"]: file["path"]
        for file in manifest["files"]
        if file["split"] not in reported
    }


def same_trouble(summary: Summary, night: Night) -> bool:
    """Whether the same shards are quarantined as the night before."""
    return summary.quarantined == list(night.quarantined)


def report_config(config: NightlyConfig, page: str) -> ReportConfig:
    """What the page is made with."""
    return ReportConfig.model_validate(
        {
            "input": {
                "path": config.output.path,
                "label": config.night.label,
                "evaluation": config.night.evaluation,
                "sample_rows": config.night.sample_rows,
            },
            "model": {"path": None},
            "explain": config.explain.model_dump(),
            "output": {"path": page},
        }
    )
