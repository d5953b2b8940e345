"""A night in a few kilobytes: its rows by bin of each signal.

Computed when the report is made, from a sample of the scored rows: scoring keeps its bytes and
its speed, and 100 M rows cost a report no more than 20,000. Counts of labels and statuses need no
sample, for the folder keeps them of all rows.

label        predicted label; of a multi-label model, the set of them
score        of a regression model, in its place
confidence   probability of the label; of independent labels, of the one that is least sure
length       characters of the text
script       what most of its letters are: Latin, Cyrillic, Arabic, ...; by Unicode's own names
unknown      share of its tokens that the tokenizer does not know
status       ok, null text, empty text, ...: the share of nulls is in here
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray.errors import DataError
from bertray.schema import Task, scored_column_names

FORMAT_VERSION = 1
SCRIPT_CHARACTERS = 256  # of a text that are looked at for its script

# Lower edges of bins. They are fine, so that a comparison can choose its own among them.
_CLOSE_TO_ONE = 1 - 10.0 ** (-np.arange(25) / 4)
EDGES: dict[str, np.ndarray] = {
    "confidence": np.unique(np.round([*np.arange(0, 1, 0.02), *_CLOSE_TO_ONE], 6)),
    "length": np.unique(np.round([0, *2 ** (np.arange(124) / 4)])),  # a fifth apart
    "unknown": np.array([0, 1e-9, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5]),
}
# A score may be of any unit: a twentieth apart, on both sides of zero.
_STEPS = 2 ** (np.arange(-320, 641) / 16)
EDGES["score"] = np.concatenate([[-np.inf], -_STEPS[::-1], [0.0], _STEPS])


@dataclass(frozen=True)
class Profile:
    """What a night's rows were like.

    Attributes:
        num_rows: rows of the night, looked at or not.
        counts: by signal, rows by bin; a numeric bin's name is its lower edge. Signals differ in
            how many rows were looked at.
    """

    num_rows: int
    counts: Mapping[str, Mapping[str, int]]

    @property
    def has_predictions(self) -> bool:
        """Whether any of the rows looked at got one."""
        return any(self.counts.get(signal) for signal in ("label", "score"))

    def __add__(self, other: "Profile") -> "Profile":
        """The profile of both nights' rows; a signal that one of them lacks is the other's."""
        signals = dict.fromkeys([*self.counts, *other.counts])
        counts = {
            signal: Counter(self.counts.get(signal, {})) + Counter(other.counts.get(signal, {}))
            for signal in signals
        }
        return Profile(self.num_rows + other.num_rows, counts)

    def to_json(self) -> dict[str, Any]:
        """For a small file."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, values: Any, *, where: str) -> "Profile":
        """Undo `to_json`.

        Raises:
            DataError: it is something else.
        """
        try:
            if values["format_version"] != FORMAT_VERSION:
                raise KeyError(f"format {values['format_version']}")
            return cls(int(values["num_rows"]), values["counts"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: not a profile of this version of bertray: {error}") from None


def profile_of(
    rows: pa.Table,
    *,
    task: Task,
    prefix: str = "",
    text: str | None = None,
    unknown_shares: Callable[[pa.ChunkedArray], np.ndarray] | None = None,
) -> Profile:
    """The profile of scored rows.

    Args:
        rows: with the scored columns; the text column, if it is there too, tells more.
        task: of the model.
        prefix: of the scored columns.
        text: the text column.
        unknown_shares: gives each text's share of unknown tokens; None if it has none.
    """
    *predicted, status = (rows[name] for name in scored_column_names(prefix, task))
    counts = {"status": _count(status)}
    classified = predicted[-1].is_valid()
    predicted = [column.filter(classified) for column in predicted]
    if task == "regression":
        counts["score"] = _histogram("score", predicted[0].to_numpy())
    elif task == "multi_label":
        sets = [" + ".join(names) or "(none)" for names in predicted[0].to_pylist()]
        counts["label"] = _count(sets)
        counts["confidence"] = _histogram("confidence", least_sure(predicted[1]))
    else:
        counts["label"] = _count(predicted[0].drop_null())
        counts["confidence"] = _histogram("confidence", predicted[1].to_numpy())
    if text is not None and text in rows.column_names:
        texts = rows[text].filter(classified).cast(pa.large_string())
        counts["length"] = _histogram("length", np.asarray(pc.utf8_length(texts)))
        counts["script"] = _count([script_of(one) for one in texts.to_pylist()])
        if unknown_shares is not None:
            counts["unknown"] = _histogram("unknown", unknown_shares(texts))
    return Profile(rows.num_rows, counts)


def script_of(text: str) -> str:
    """The script that most letters of a text's beginning are of; of equal ones the first."""
    scripts: Counter[str] = Counter()
    for character, count in Counter(text[:SCRIPT_CHARACTERS]).items():
        if character.isalpha():
            scripts[_script(character)] += count
    return scripts.most_common(1)[0][0] if scripts else "(no letters)"


def least_sure(probabilities: pa.ChunkedArray) -> np.ndarray:
    """How sure rows are of that of their independent labels that they are least sure of."""
    values = probabilities.combine_chunks()
    if not len(values):
        return np.empty(0, np.float32)
    flat = values.flatten().to_numpy().reshape(len(values), -1)
    return np.asarray(np.maximum(flat, 1 - flat).min(axis=1, initial=1.0))


@cache
def _script(letter: str) -> str:
    """The first word of a letter's Unicode name, as in LATIN SMALL LETTER A."""
    return unicodedata.name(letter, "unnamed").split(maxsplit=1)[0].split("-")[0].capitalize()


def _histogram(signal: str, values: np.ndarray) -> dict[str, int]:
    """Values by the bin of `EDGES` that they lie in."""
    edges = EDGES[signal]
    # In the values' own type: 0.9 in 32 bits is below 0.9 in 64.
    places = np.searchsorted(edges.astype(values.dtype), values, side="right") - 1
    found = np.bincount(places, minlength=len(edges))
    return {f"{edges[index]:.7g}": int(found[index]) for index in np.flatnonzero(found)}


def _count(values: pa.ChunkedArray | Sequence[str]) -> dict[str, int]:
    listed = values.to_pylist() if isinstance(values, pa.ChunkedArray) else values
    return dict(Counter(listed).most_common())
