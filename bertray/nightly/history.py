"""What earlier nights were: a record, a profile and a page each, and one page that lists them.

records/20261126T011307.json     a `Night`
profiles/20261126T011307.json    what its new rows were like
20261126T011307.html             its page
index.html                       all nights, the latest first
challenger.json                  what became of a challenger, until a night has told it
_lease.json                      which run is at work
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from bertray import storage
from bertray.config import NightlyConfig
from bertray.errors import ConfigError, DataError
from bertray.report.nights import MOST_NIGHTS, NightLine
from bertray.report.page import render_index
from bertray.report.profile import Profile
from bertray.report.signals import NAMES
from bertray.score.plan import side_by_side

FORMAT_VERSION = 1
ID = "%Y%m%dT%H%M%S"  # of a night, UTC
INDEX = "index.html"
RECORDS, PROFILES, UNTOLD = "records", "profiles", "challenger.json"


@dataclass(frozen=True)
class Night:
    """A run of the nightly job that had something to do.

    Attributes:
        id: its start in UTC, which also orders the nights.
        seconds: wall clock.
        model: that scored.
        digests: of the model and of the settings; nights of other ones are not compared.
        num_rows: in the output folder afterwards.
        splits: ids of those that were scored since the night before.
        num_rows_new: in these.
        quarantined: shards that are not in the output, each with ``shard`` and ``reason``.
        num_rows_quarantined: rows that held a text and yet got no prediction.
        drifted: signals that were not as on other nights.
        notes: what else there is to know, for people.
        rows_per_s: at which they were scored; None if that is not known.
    """

    id: str
    seconds: float
    model: str
    digests: tuple[str, str]
    num_rows: int
    splits: tuple[str, ...]
    num_rows_new: int
    quarantined: tuple[dict[str, str], ...]
    num_rows_quarantined: int
    drifted: tuple[str, ...]
    notes: tuple[str, ...] = ()
    rows_per_s: float | None = None

    @property
    def trouble(self) -> str:
        """What needs a look, in words; empty if nothing does."""
        parts = []
        if self.quarantined:
            parts.append(f"shards quarantined: {len(self.quarantined):,}")
        if self.num_rows_quarantined:
            parts.append(f"rows without a prediction: {self.num_rows_quarantined:,}")
        if self.drifted:
            parts.append(f"drift of {', '.join(NAMES[signal] for signal in self.drifted)}")
        return "; ".join(parts)

    @property
    def page(self) -> str:
        """Name of its page."""
        return f"{self.id}.html"


def history_of(config: NightlyConfig) -> str:
    """Where nights are kept: beside the scored shards unless told.

    Raises:
        ConfigError: among the scored shards.
    """
    output = storage.absolute(config.output.path).rstrip("/")
    history = storage.absolute(config.history.path or f"{output}-nights").rstrip("/")
    if history == output:
        raise ConfigError(
            f"history.path={config.history.path} is output.path too: nights have a folder of their "
            "own; leave it out for one beside output.path"
        )
    return history


def read_nights(history: str) -> list[Night]:
    """All nights, oldest first.

    Raises:
        DataError: one was written by another version of bertray.
    """
    folder = storage.join(history, RECORDS)
    if not storage.exists(folder):
        return []
    _, found = storage.list_files(folder, suffix=".json", key="history.path")
    return side_by_side(_read, [storage.join(folder, file.path) for file in found])


def put_night(history: str, night: Night, profile: Profile) -> None:
    """Keep a night. It is known once its record is there."""
    name = f"{night.id}.json"
    storage.put_json(storage.join(history, PROFILES, name), profile.to_json(), overwrite=True)
    record = {"format_version": FORMAT_VERSION, **asdict(night)}
    storage.put_json(storage.join(history, RECORDS, name), record, overwrite=True)


def read_untold(history: str) -> list[str]:
    """What became of challengers and no night has told, for it was cut off."""
    return list(storage.get_json(storage.join(history, UNTOLD)) or ())


def put_untold(history: str, said: Sequence[str]) -> None:
    """Keep what became of challengers; nothing once it is told."""
    uri = storage.join(history, UNTOLD)
    if said:
        storage.put_json(uri, list(said), overwrite=True)
    elif storage.exists(uri):
        storage.remove(uri)


def put_index(history: str, nights: Sequence[Night]) -> None:
    """Write the page that lists nights."""
    page = render_index(lines_of(history, nights), place=history)
    storage.put_bytes(storage.join(history, INDEX), page.encode(), overwrite=True)


def lines_of(history: str, nights: Sequence[Night]) -> list[NightLine]:
    """Nights as pages list them, the latest first; those that are drawn with their profiles."""
    drawn = nights[-MOST_NIGHTS:]
    found = side_by_side(_profile, [profile_uri(history, night) for night in drawn])
    profiles = dict(zip([night.id for night in drawn], found, strict=True))
    return [
        NightLine(
            name=f"{(began := datetime.strptime(night.id, ID)):%-d %b %Y, %H:%M} UTC",
            day=f"{began:%-d %b}",
            page=night.page,
            model=night.model,
            num_rows=night.num_rows_new,
            seconds=night.seconds,
            rows_per_s=night.rows_per_s,
            profile=profiles.get(night.id),
            trouble=night.trouble,
        )
        for night in reversed(nights)
    ]


def reference_of(history: str, nights: Sequence[Night]) -> Night | None:
    """The night that others are compared with: the first one that had rows with a prediction."""
    for night in nights:
        profile = _profile(profile_uri(history, night))
        if profile is not None and profile.has_predictions:
            return night
    return None


def profile_uri(history: str, night: Night) -> str:
    """Where the profile of a night lies."""
    return storage.join(history, PROFILES, f"{night.id}.json")


def _profile(uri: str) -> Profile | None:
    values = storage.get_json(uri)
    return None if values is None else Profile.from_json(values, where=uri)


def _read(uri: str) -> Night:
    values: Any = storage.get_json(uri)
    try:
        if values.pop("format_version") != FORMAT_VERSION:
            raise KeyError("format_version")
        for name in ("digests", "splits", "quarantined", "drifted", "notes"):
            values[name] = tuple(values[name])
        return Night(**values)
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"history.path: {uri} is no night of this version of bertray ({error}); "
            "choose another history.path, or move it away"
        ) from None
