"""Whose output folder it is: one model, one group of settings, written down before the first row.

_contract.json   what the folder belongs to        _config.yaml   the resolved config
_manifest.json   files, rows, quarantined shards   _SUCCESS       every shard is there
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from bertray import storage
from bertray.config import ScoreConfig, dump_config
from bertray.errors import BertrayError, OutputError
from bertray.model.bundle import Bundle
from bertray.score.plan import Plan, outdated_outputs
from bertray.score.sink import Receipt

SCHEMA_VERSION = 1
CONTRACT, CONFIG, MANIFEST, SUCCESS = (
    "_contract.json",
    "_config.yaml",
    "_manifest.json",
    "_SUCCESS",
)


@dataclass(frozen=True)
class Contract:
    """What an output folder belongs to.

    Attributes:
        schema_version: of the scored columns and footers.
        model: what the user named, for messages.
        model_digest: of its files.
        settings: those that change what is written.
    """

    schema_version: int
    model: str
    model_digest: str
    settings: dict[str, Any]

    @property
    def settings_digest(self) -> str:
        """Hash of `settings`."""
        text = json.dumps(self.settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def contract_of(config: ScoreConfig, bundle: Bundle) -> Contract:
    """The contract a run asks for. Where the output lies and who computes it is no part of it."""
    settings = {
        "model": config.model.model_dump(exclude={"path"}),
        "input": config.input.model_dump(exclude={"path"}),
        "output.prefix": config.output.prefix,
    }
    return Contract(SCHEMA_VERSION, bundle.source, bundle.digest, json.loads(json.dumps(settings)))


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


def agree(output: str, contract: Contract, *, replace: bool) -> None:
    """Write the contract into a new folder, or check that the folder has an equal one.

    Raises:
        OutputError: the folder holds something else, or another model's or settings' work, or
            cannot be reached.
    """
    try:
        _agree(output, contract, replace=replace)
    except BertrayError:
        raise
    except Exception as error:  # each cloud's client has errors of its own
        raise OutputError(f"output.path={output}: cannot be used: {error}") from error


def _agree(output: str, contract: Contract, *, replace: bool) -> None:
    uri = storage.join(output, CONTRACT)
    found = storage.get_json(uri)
    if found is None:
        if not storage.is_empty(output):
            raise OutputError(
                f"output.path={output} holds files that bertray did not write (no {CONTRACT}); "
                "choose an empty or new folder"
            )
    elif _same(found, contract):
        return
    elif replace:
        storage.remove(output)
    else:
        raise OutputError(_difference(output, found, contract))
    if not storage.put_json(uri, asdict(contract)):
        _agree(output, contract, replace=False)  # another run was faster: is it of the same kind?


def _same(found: Any, contract: Contract) -> bool:
    """What the user called the model is for messages alone."""
    wanted = asdict(contract)
    return isinstance(found, dict) and found | {"model": contract.model} == wanted


def begin(output: str, config: ScoreConfig) -> None:
    """Say that work is under way: the folder is no longer, or not yet, complete."""
    storage.remove(storage.join(output, SUCCESS))
    storage.put_bytes(storage.join(output, CONFIG), dump_config(config).encode(), overwrite=True)


def complete(
    output: str, contract: Contract, plan: Plan, receipts: Iterable[Receipt]
) -> list[dict[str, str]]:
    """Write the manifest, and ``_SUCCESS`` if no shard is missing.

    The manifest depends on what was scored, not on when or by how many runs.

    Returns:
        The quarantined shards, each with ``shard`` and ``reason``.

    Raises:
        OutputError: a split has no receipt, or one of another number of rows.
    """
    by_split = {receipt.split_id: receipt for receipt in receipts}
    quarantined = [asdict(bad) for bad in plan.bad_shards]
    files = []
    for split in plan.splits:
        receipt = by_split.get(split.id)
        if receipt is None:
            raise OutputError(f"{output}: {split.output} was not scored; run again")
        if receipt.fault is not None:
            quarantined.append({"shard": split.shard, "reason": receipt.fault})
            continue
        if receipt.num_rows != split.num_rows:
            raise OutputError(
                f"{output}: {split.output} has {receipt.num_rows} rows, {split.shard} has "
                f"{split.num_rows}; run again"
            )
        files.append(
            {"path": split.output, "shard": split.shard, "rows": split.num_rows, "split": split.id}
        )
    for path in outdated_outputs(plan, output):
        storage.remove(storage.join(output, path))
    if quarantined:
        storage.remove(storage.join(output, SUCCESS))
    manifest = {
        "model": contract.model,
        "model_digest": contract.model_digest,
        "settings_digest": contract.settings_digest,
        "rows": sum(receipt.num_rows for receipt in by_split.values()),
        "files": files,
        "quarantined": quarantined,
    }
    uri = storage.join(output, MANIFEST)
    if storage.get_json(uri) != manifest:
        storage.put_json(uri, manifest, overwrite=True)
    if not quarantined:
        storage.put_bytes(storage.join(output, SUCCESS), b"")
    return quarantined


def _difference(output: str, found: Any, wanted: Contract) -> str:
    """Names both sides of a contract that does not fit."""
    if not isinstance(found, dict) or set(found) != set(asdict(wanted)):
        what = "was written by another version of bertray"
    elif found["model_digest"] != wanted.model_digest:
        what = (
            f"belongs to model {found['model']} (digest {found['model_digest'][:12]}), this run "
            f"has {wanted.model} (digest {wanted.model_digest[:12]})"
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
    """A place without links, trailing slashes or the pattern of a glob."""
    place = storage.without_pattern(uri)
    return (
        str(storage.local_path(place).resolve()) if storage.is_local(place) else place.rstrip("/")
    )
