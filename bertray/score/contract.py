"""Whose output folder it is: one model and one group of settings, said before the first row."""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from dataclasses import replace as changed
from typing import TYPE_CHECKING, Any

from bertray import storage
from bertray.config import Input, ScoreConfig
from bertray.errors import BertrayError, OutputError
from bertray.score.commits import Digests, list_outputs
from bertray.score.plan import side_by_side
from bertray.score.standing import Standing

if TYPE_CHECKING:  # the writing processes need no torch
    from bertray.model.bundle import Bundle

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
CONTRACT = "_contract.json"
NOT_OF_A_NEW_START = (
    "_SUCCESS",
    "_manifest.json",
    "_run.json",
    "_report.html",
    "_profile.json",
    "_index",
)
# Where the input lies and when a run gives up change no byte of what is written.
NOT_IN_CONTRACT = {"path", "on_bad_shard", "on_bad_row", "max_bad_share"}
# How shards are cut. A folder keeps the cut that it was begun with: under two cuts a late worker of
# one would put rows beside, or over, those of the other.
CUT = ("max_split_rows", "max_split_bytes")


@dataclass(frozen=True)
class Contract:
    """What an output folder belongs to.

    Attributes:
        schema_version: of the scored columns and footers.
        model: what the user named, for messages.
        model_digest: of its files.
        settings: those that change what is written.
        input: where the shards lie.
    """

    schema_version: int
    model: str
    model_digest: str
    settings: dict[str, Any]
    input: str

    @property
    def digests(self) -> Digests:
        """What the footers of the folder's files say."""
        text = json.dumps(self.settings, sort_keys=True)
        return Digests(self.model_digest, hashlib.sha256(text.encode()).hexdigest())

    def cut(self, source: Input) -> Input:
        """The input, to be cut as the folder was begun."""
        limits = {key: value for key, value in self.settings["input"].items() if key in CUT}
        return source.model_copy(update=limits)


def contract_of(config: ScoreConfig, bundle: "Bundle") -> Contract:
    """The contract a run asks for. Where the output lies and who computes it is no part of it."""
    settings = {
        "model": config.model.model_dump(exclude={"path", "store"}),
        "input": config.input.model_dump(exclude=NOT_IN_CONTRACT),
        "output.prefix": config.output.prefix,
    }
    if text := config.text.model_dump(exclude_none=True):  # what is as trained, the digest holds
        settings["text"] = text
    if abstain := config.abstain.model_dump(exclude_none=True):
        settings["abstain"] = abstain
    return Contract(
        schema_version=SCHEMA_VERSION,
        model=bundle.source,
        model_digest=bundle.digest,
        settings=json.loads(json.dumps(settings)),
        input=_plain(config.input.path),
    )


def as_begun(output: str, contract: Contract) -> Contract:
    """The contract with the cut that a folder was begun with, if it differs in no other setting.

    Raises:
        OutputError: the folder cannot be reached.
    """
    found = _found(output)
    if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
        return contract
    ours = contract.settings["input"]
    begun = {key: found["settings"].get("input", {}).get(key, ours[key]) for key in CUT}
    settings = {**contract.settings, "input": {**ours, **begun}}
    if found["settings"] != settings:
        return contract
    key = "max_split_rows"
    if begun[key] != ours[key]:
        logger.warning(
            "output.path=%s was begun with input.%s=%d: its shards stay cut so, and input.%s=%d "
            "changes nothing",
            *(output, key, begun[key], key, ours[key]),
        )
    return changed(contract, settings=settings)


def check_place(output: str, source: str) -> None:
    """Raise OutputError if one of two places lies in the other.

    Scored shards would be read as input by the next run, or starting over would remove the input.
    """
    ours, theirs = f"{_plain(output)}/", f"{_plain(source)}/"
    if ours.startswith(theirs) or theirs.startswith(ours):
        raise OutputError(
            f"output.path={output} and input.path={source}: one lies inside the other, so that "
            "scored shards would be taken for input; choose a folder beside it"
        )


def agree(output: str, contract: Contract, standing: Standing, *, replace: bool) -> None:
    """Write the contract into a new folder, or check that the folder has an equal one.

    One that ``replace`` gives up is left as it is, for `start_over`.

    Raises:
        OutputError: as `check`.
    """
    found = check(output, contract, standing, replace=replace)
    uri = storage.join(output, CONTRACT)
    if found is None:
        if not storage.put_json(uri, asdict(contract)):
            # Another run was faster: is it of the same kind?
            check(output, contract, standing, replace=replace)
    elif _fits(found, contract, standing) and standing.done and found["input"] != contract.input:
        storage.put_json(uri, asdict(contract), overwrite=True)  # the same shards, moved


def start_over(output: str, contract: Contract, standing: Standing) -> bool:
    """Make a folder that belongs to another contract ours; no-op if it is ours already.

    The contract comes first. Cut off after it, the old files are no commits of ours, and the next
    run replaces them.

    Returns:
        Whether the folder was emptied, so that ``standing`` holds no longer.

    Raises:
        OutputError: another run starts it over at the same moment.
    """
    uri = storage.join(output, CONTRACT)
    version = storage.version_of(uri)
    if _fits(storage.get_json(uri), contract, standing):
        return False
    if not storage.put_json(uri, asdict(contract), replaces=version):
        check(output, contract, standing, replace=False)
        return False
    for name in NOT_OF_A_NEW_START:
        storage.remove(storage.join(output, name))
    side_by_side(storage.remove, [storage.join(output, name) for name in list_outputs(output)])
    return True


def check(output: str, contract: Contract, standing: Standing, *, replace: bool) -> Any | None:
    """The contract in a folder that may be used; None in a new folder.

    Raises:
        OutputError: the folder holds something else, or cannot be reached; or it holds another
            model's, settings' or input's work, which ``replace`` does not give up.
    """
    found = _found(output)
    if found is None and not storage.is_empty(output):
        raise OutputError(
            f"output.path={output} holds files that bertray did not write (no {CONTRACT}); "
            "choose an empty or new folder"
        )
    if found is not None and not replace and not _fits(found, contract, standing):
        raise OutputError(_difference(output, found, contract))
    return found


def _found(output: str) -> Any | None:
    """What stands where a folder's contract would."""
    try:
        return storage.get_json(storage.join(output, CONTRACT))
    except BertrayError:
        raise
    except Exception as error:  # each cloud's client has errors of its own
        raise OutputError(f"output.path={output}: cannot be used: {error}") from error


def read_contract(output: str) -> Contract:
    """The contract of an output folder.

    Raises:
        OutputError: there is none, or it is another version's.
    """
    found = storage.get_json(storage.join(output, CONTRACT))
    if found is None:
        raise OutputError(f"{output}: not an output folder of bertray score (no {CONTRACT})")
    try:
        return Contract(**found)
    except TypeError:
        raise OutputError(f"{output}: written by another version of bertray") from None


def _fits(found: Any, contract: Contract, standing: Standing) -> bool:
    """Whether a folder's contract is this run's. What the user called the model does not matter.

    Nor does where the shards lie, as long as no other lake's scores are replaced or pruned because
    names are equal: a lake that moved with its shards as they are shows by those that are done.
    """
    if not isinstance(found, dict) or "input" not in found:
        return False
    spoken = {"model": contract.model, "input": contract.input}
    at_stake = standing.stale or standing.outdated or standing.vanished
    other_lake = _plain(found["input"]) != contract.input and at_stake and not standing.done
    return found | spoken == asdict(contract) and not other_lake


def raise_if_taken(output: str, digests: Digests) -> None:
    """Raise OutputError if a folder belongs to another model or other settings by now.

    A run that was cut off for a while may find that its output was started over meanwhile.
    """
    found = storage.get_json(storage.join(output, CONTRACT))
    if found is None:
        return
    owner = read_contract(output)
    if owner.digests != digests:
        raise OutputError(
            f"output.path={output} was started over by another run: it belongs to model "
            f"{owner.model} (digest {owner.model_digest[:12]}, settings "
            f"{owner.digests.settings[:12]}) now, this run has digest {digests.model[:12]}, "
            f"settings {digests.settings[:12]}; choose another folder"
        )


def _difference(output: str, found: Any, wanted: Contract) -> str:
    """Names both sides of a contract that does not fit."""
    if not isinstance(found, dict) or set(found) != set(asdict(wanted)):
        what = "was written by another version of bertray"
    elif found["model_digest"] != wanted.model_digest:
        what = (
            f"belongs to model {found['model']} (digest {found['model_digest'][:12]}), this run "
            f"has {wanted.model} (digest {wanted.model_digest[:12]})"
        )
    elif found["settings"] == wanted.settings:
        what = (
            f"holds what was scored from {found['input']}, this run reads {wanted.input} and would "
            "replace it, for names are equal"
        )
    else:
        old, new = _flat(found["settings"]), _flat(wanted.settings)
        changed = sorted(key for key in old | new if old.get(key) != new.get(key))
        pairs = (f"{key}: {old.get(key)} there, {new.get(key)} here" for key in changed)
        what = f"was scored with other settings ({'; '.join(pairs)})"
    return f"output.path={output} {what}; choose another folder, or output.replace=true"


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat


def _plain(uri: str) -> str:
    """A place without links, trailing slashes, the pattern of a glob or a second name (s3a://)."""
    place = storage.without_pattern(uri)
    if storage.is_local(place):
        return str(storage.local_path(place).resolve())
    if place.partition("://")[0] in storage.S3_SCHEMES:
        place = f"s3://{storage.resolve(place)[1]}"
    return place.rstrip("/")
