"""What earlier nights were: one small file each, and a page that lists them.

20261126T011307.json    a `Night`
20261126T011307.html    its page
index.html              all nights, the latest first
_lease.json             which run is at work
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from bertray import __version__, storage
from bertray.errors import DataError
from bertray.report.profile import Profile
from bertray.score.plan import side_by_side

FORMAT_VERSION = 1
INDEX = "index.html"
MOST_PAST = 30  # nights that tonight is held against


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
        profile: what the new rows were like.
        notes: what else there is to know, for people.
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
    profile: Profile
    notes: tuple[str, ...] = field(default=())

    @property
    def is_fine(self) -> bool:
        """Whether nothing about it needs a look."""
        return not (self.quarantined or self.num_rows_quarantined or self.drifted)

    @property
    def page(self) -> str:
        """Name of its page."""
        return f"{self.id}.html"


def read_nights(history: str) -> list[Night]:
    """All nights, oldest first.

    Raises:
        DataError: one was written by another version of bertray.
    """
    if not storage.exists(history):
        return []
    root, found = storage.list_files(history, suffix=".json", key="history.path")
    uris = [storage.join(root, file.path) for file in found]
    return [_from_json(uri, values) for uri, values in zip(uris, _contents(uris), strict=True)]


def put_night(history: str, night: Night) -> None:
    """Keep a night, and list it with the others."""
    values = {"format_version": FORMAT_VERSION, **asdict(night), "profile": night.profile.to_json()}
    storage.put_json(storage.join(history, f"{night.id}.json"), values, overwrite=True)
    put_index(history, read_nights(history))


def put_index(history: str, nights: Sequence[Night]) -> None:
    """Write the page that lists nights."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(
        files("bertray.nightly").joinpath("index.html").read_text(encoding="utf-8")
    )
    page = template.render(nights=nights[::-1], version=__version__)
    storage.put_bytes(storage.join(history, INDEX), page.encode(), overwrite=True)


def alike(nights: Sequence[Night], digests: tuple[str, str]) -> list[Night]:
    """The nights of the same model and settings."""
    return [night for night in nights if night.digests == digests]


def _contents(uris: Sequence[str]) -> list[Any]:
    return list(side_by_side(storage.get_json, uris))


def _from_json(uri: str, values: Any) -> Night:
    try:
        if values.pop("format_version") != FORMAT_VERSION:
            raise KeyError("format_version")
        lists = ("digests", "splits", "quarantined", "drifted", "notes")
        values |= {name: tuple(values[name]) for name in lists}
        values["profile"] = Profile.from_json(values["profile"], where=uri)
        return Night(**values)
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"history.path: {uri} is no night of this version of bertray ({error}); "
            "choose another history.path, or move it away"
        ) from None
