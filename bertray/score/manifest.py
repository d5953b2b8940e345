"""What an output folder says of itself, for those who read it.

_config.yaml     the resolved config of the last run
_manifest.json   files, rows, quarantined shards
_SUCCESS         every shard is there
_run.json        how the last run that had something to do went
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from bertray import storage
from bertray.config import ScoreConfig, dump_config
from bertray.errors import OutputError
from bertray.score.commits import Receipt
from bertray.score.contract import Contract, raise_if_taken
from bertray.score.plan import Split
from bertray.score.standing import Standing

CONFIG, MANIFEST, SUCCESS, RUN = "_config.yaml", "_manifest.json", "_SUCCESS", "_run.json"


def begin(config: ScoreConfig) -> None:
    """Say that work is under way: the folder is no longer, or not yet, complete."""
    storage.remove(storage.join(config.output.path, SUCCESS))
    put_config(config)


def put_config(config: ScoreConfig) -> None:
    """Keep the resolved config, which says where the input lies whoever asks, and from where."""
    source = config.input.model_copy(update={"path": storage.absolute(config.input.path)})
    text = dump_config(config.model_copy(update={"input": source})).encode()
    uri = storage.join(config.output.path, CONFIG)
    if storage.get_bytes(uri) != text:
        storage.put_bytes(uri, text, overwrite=True)


def complete(
    output: str,
    contract: Contract,
    standing: Standing,
    receipts: Iterable[Receipt],
    *,
    prune: bool = False,
) -> list[dict[str, str]]:
    """Write the manifest, and ``_SUCCESS`` if no shard is missing.

    The manifest depends on what was scored, not on when or by how many runs.

    Args:
        output: the folder.
        contract: whose it is.
        standing: what was planned.
        receipts: one of each split.
        prune: remove the scored files of shards that are gone.

    Returns:
        The quarantined shards, each with ``shard`` and ``reason``.

    Raises:
        OutputError: a split has no receipt, or one of another number of rows; or the folder
            belongs to another run's contract by now.
    """
    raise_if_taken(output, contract.digests)
    plan = standing.plan
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
        files.append(_manifest_line(split))
    for path in (*standing.outdated, *(standing.vanished if prune else ())):
        storage.remove(storage.join(output, path))
    if quarantined:
        storage.remove(storage.join(output, SUCCESS))
    manifest = {
        "model": contract.model,
        "model_digest": contract.model_digest,
        "settings_digest": contract.digests.settings,
        "rows_in": plan.num_rows,
        "rows": sum(receipt.num_rows for receipt in by_split.values()),
        "quarantined": quarantined,
        "vanished": [] if prune else list(standing.vanished),
        "files": files,
    }
    text = _to_text(manifest)
    uri = storage.join(output, MANIFEST)
    if storage.get_bytes(uri) != text:
        storage.put_bytes(uri, text, overwrite=True)
    if not quarantined and not storage.exists(storage.join(output, SUCCESS)):
        storage.put_bytes(storage.join(output, SUCCESS), b"")
    return quarantined


def _manifest_line(split: Split) -> dict[str, Any]:
    """A shard that is one split has its scored twin's name, which is not written twice."""
    cut = {} if split.shard == split.output else {"shard": split.shard}
    return {"path": split.output, **cut, "rows": split.num_rows, "split": split.id}


def _to_text(manifest: dict[str, Any]) -> bytes:
    """The manifest as JSON, a line a file."""
    head = json.dumps({**manifest, "files": []}, indent=2, ensure_ascii=False)
    lines = ",\n    ".join(json.dumps(file, ensure_ascii=False) for file in manifest["files"])
    return (head.removesuffix("[]\n}") + f"[\n    {lines}\n  ]\n}}\n").encode()
