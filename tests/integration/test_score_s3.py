"""The scoring job from S3 to S3, on a real server that fails as servers do."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_proxy import FaultProxy

from bertray import cli, storage
from bertray.config import ScoreConfig, load_config
from bertray.score.run import score
from bertray.score.summary import Summary

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

ROOT = "s3://lake/a lake"
SOURCE = f"{ROOT}/in"
SHARDS = ["day=1/part 000.parquet", "day=1/part%2B001.parquet", "day=2/é#2.parquet", "z+3.parquet"]
ROWS = 12
WORDS = "good bad film plot the a is was very not great awful story actor".split()


def words(model: Path, output: str) -> list[str]:
    return [
        f"model.path={model}",
        f"input.path={SOURCE}",
        f"output.path={output}",
        "pool.max_actors=1",
    ]


def run(model: Path, output: str) -> Summary:
    return score(load_config(ScoreConfig, None, words(model, output)))


def contents(output: str) -> dict[str, bytes | None]:
    """What readers of the folder see, and the manifest."""
    names = [*SHARDS, "_manifest.json", "_SUCCESS"]
    return {name: storage.get_bytes(storage.join(output, name)) for name in names}


@pytest.fixture(scope="module")
def clean(s3_server: FaultProxy, classifier_folder: Path) -> str:
    """The output of one run in which nothing failed."""
    s3_server.heal()
    random = np.random.default_rng(0)
    for number, shard in enumerate(SHARDS):
        texts = [" ".join(random.choice(WORDS, random.integers(1, 40))) for _ in range(ROWS)]
        ids = range(number * ROWS, (number + 1) * ROWS)
        sink = io.BytesIO()
        pq.write_table(pa.table({"id": ids, "text": texts}), sink)
        assert storage.put_bytes(storage.join(SOURCE, shard), sink.getvalue())
    assert run(classifier_folder, f"{ROOT}/clean").num_rows_scored == ROWS * len(SHARDS)
    return f"{ROOT}/clean"


@pytest.fixture
def faults(s3_server: FaultProxy) -> Iterator[FaultProxy]:
    s3_server.heal()
    yield s3_server
    s3_server.heal()


def test_every_row_of_a_lake_on_s3_comes_back_and_a_second_run_writes_nothing(
    clean: str, classifier_folder: Path, faults: FaultProxy
) -> None:
    ids = []
    for shard in SHARDS:
        with storage.open_input(storage.join(clean, shard)) as file:
            table = pq.read_table(file)
        assert set(table["prediction_status"].to_pylist()) == {"ok"}
        ids += table["id"].to_pylist()
    assert ids == [*range(ROWS * len(SHARDS))]
    before = contents(clean)
    faults.heal()
    assert run(classifier_folder, clean).num_rows_scored == 0
    assert {method for method, _ in faults.requests} <= {"GET", "HEAD"}
    assert contents(clean) == before


def test_a_run_in_which_s3_fails_now_and_then_ends_like_a_clean_one(
    clean: str, classifier_folder: Path, faults: FaultProxy
) -> None:
    output = f"{ROOT}/faults"
    for shard, kind in zip(SHARDS, ("lose", "reset", "cut", "answer"), strict=True):
        faults.inject(kind, method="PUT", path=f"faults/{shard}")
        faults.inject("cut-reply", method="GET", path=f"in/{shard}")
    for method in ("GET", "HEAD", "PUT"):
        faults.inject("answer", method=method, status=503, code="SlowDown")
        faults.inject("reset", method=method)
    summary = run(classifier_folder, output)
    assert faults.hits >= 2 * len(SHARDS) + 6
    assert (summary.num_rows_scored, summary.quarantined) == (ROWS * len(SHARDS), [])
    assert contents(output) == contents(clean)


DEATHS: dict[str, tuple[dict[str, Any], str]] = {
    "dead": ({"kind": "reset"}, "cannot be (reached|written)"),
    "expired": ({"kind": "answer", "status": 403, "code": "ExpiredToken"}, "ExpiredToken"),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_run_during_which_s3_dies_or_credentials_expire_says_so_once_and_the_next_one_finishes(
    death: str,
    clean: str,
    classifier_folder: Path,
    faults: FaultProxy,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fault, said = DEATHS[death]
    output = f"{ROOT}/{death}"
    # The last thing that S3 does is to take one scored file, and nobody is told.
    faults.inject(
        "lose",
        method="PUT",
        path=f"{death}/day=1",
        then=lambda: faults.inject(**fault, count=None),
    )
    assert cli.main(["score", *words(classifier_folder, output)]) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    message = " ".join(told.split())
    assert len(re.findall(said, message)) == 1
    assert "run again" in message
    faults.heal()

    there = [name for name in SHARDS if contents(output)[name] is not None]
    assert there
    assert contents(output)["_SUCCESS"] is None
    summary = run(classifier_folder, output)
    assert summary.num_rows_scored == ROWS * (len(SHARDS) - len(there))
    assert contents(output) == contents(clean)


def test_credentials_that_have_expired_are_named_before_anything_starts(
    clean: str,
    classifier_folder: Path,
    faults: FaultProxy,
    capsys: pytest.CaptureFixture[str],
) -> None:
    faults.inject("answer", count=None, status=403, code="ExpiredToken")
    assert cli.main(["score", *words(classifier_folder, f"{ROOT}/expired")]) == 2
    told = capsys.readouterr().err
    assert "ExpiredToken" in told
    assert "Traceback" not in told
