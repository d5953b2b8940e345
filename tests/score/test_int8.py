"""What a run in int8 says of its own rows."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from bertray.model.bundle import Bundle, open_bundle
from bertray.model.settings import EngineSettings, resolve_settings
from bertray.score import int8
from bertray.score.int8 import SAMPLE_ROWS, SAMPLE_TOKENS, report_agreement, sample
from bertray.score.plan import Split, plan_splits
from bertray.score.source import Reading
from bertray.text.long import LongText

Write = Callable[..., Path]
Told = Callable[[], list[logging.LogRecord]]
SINGLE, PAIRS = Reading("text", None, None, ""), Reading("text", "other", None, "")


@pytest.fixture(scope="module")
def bundle(classifier_folder: Path) -> Bundle:
    return open_bundle(str(classifier_folder))


@pytest.fixture(scope="module")
def exact(bundle: Bundle) -> EngineSettings:
    return resolve_settings(bundle, device="cpu")


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    """What this module itself has logged, whatever libraries say meanwhile."""
    caplog.set_level(logging.INFO, logger=int8.__name__)
    return lambda: [record for record in caplog.records if record.name == int8.__name__]


def splits_of(root: Path) -> Sequence[Split]:
    return plan_splits(str(root), check_schema=lambda *_: None, max_split_rows=1_000).splits


def test_a_sample_is_told_of_by_its_size(
    bundle: Bundle, exact: EngineSettings, write_shards: Write, told: Told
) -> None:
    texts = [*["good film", "awful plot", "not great"] * 20, None]
    splits = splits_of(write_shards({"a": pa.table({"text": texts})}))
    report_agreement(splits, bundle=bundle, exact=exact, reading=SINGLE)
    (record,) = told()
    assert "of the labels of 60 sampled rows as they are" in record.getMessage()


@pytest.mark.parametrize("texts", [[None, None], ["", " "]])
def test_of_a_sample_without_texts_nothing_is_said(
    bundle: Bundle,
    exact: EngineSettings,
    write_shards: Write,
    told: Told,
    texts: list[str | None],
) -> None:
    table = pa.table({"text": pa.array(texts, pa.string())})
    report_agreement(
        splits_of(write_shards({"a": table})), bundle=bundle, exact=exact, reading=SINGLE
    )
    assert not told()


@pytest.mark.parametrize(("agreement", "level"), [(0.994, "WARNING"), (0.995, "INFO")])
def test_the_first_split_that_can_be_read_is_read_as_the_run_reads_it(
    bundle: Bundle,
    exact: EngineSettings,
    write_shards: Write,
    monkeypatch: pytest.MonkeyPatch,
    told: Told,
    agreement: float,
    level: str,
) -> None:
    given: list[Any] = []

    def verify(*words: Any) -> float:
        given.extend(words)
        return agreement

    monkeypatch.setattr(int8, "verify_int8", verify)
    table = pa.table({"text": ["good " * 50, "bad", None], "other": ["film", None, "plot"]})
    root = write_shards({"a": table, "b": table})
    splits = splits_of(root)
    (root / "a.parquet").write_bytes(b"broken")
    report_agreement(splits, bundle=bundle, exact=exact, reading=PAIRS)
    assert given[:2] == [bundle, exact]
    assert [column.to_pylist() for column in given[2:]] == [["good " * 50], ["film"]]
    (record,) = told()
    assert record.levelname == level
    assert ("model.dtype=float32 is exact" in record.getMessage()) == (level == "WARNING")


def test_a_sample_is_of_the_whole_split_and_within_a_budget(exact: EngineSettings) -> None:
    texts = pa.array([f"row {number}" for number in range(2_000)])
    (rows,) = sample([texts], exact)
    numbers = [int(text.split()[1]) for text in rows.to_pylist()]
    assert len(numbers) == len(set(numbers)) == SAMPLE_ROWS
    assert numbers == sorted(numbers)
    assert all(400 * part <= numbers[51 * part] < 400 * (part + 1) + 100 for part in range(5))
    assert sample([texts], exact)[0].equals(rows)
    long = pa.array(["good film " * 10_000] * 2_000)
    assert len(sample([long], exact)[0]) == min(SAMPLE_TOKENS // exact.max_length, SAMPLE_ROWS)
    windows = EngineSettings(**(vars(exact) | {"long_text": LongText("window", max_windows=100)}))
    assert len(sample([long], windows)[0]) == SAMPLE_TOKENS // (100 * exact.max_length)
    endless = EngineSettings(**(vars(exact) | {"max_length": 10 * SAMPLE_TOKENS}))
    assert len(sample([long], endless)[0]) == 1
