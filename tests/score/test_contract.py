import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bertray import storage
from bertray.config import ScoreConfig, load_config
from bertray.errors import OutputError
from bertray.model.bundle import Bundle, open_bundle
from bertray.score.commits import Digests, Receipt
from bertray.score.contract import (
    agree,
    check_place,
    contract_of,
    raise_if_taken,
    read_contract,
    start_over,
)
from bertray.score.index import Index
from bertray.score.manifest import complete
from bertray.score.plan import BadShard, Plan, Split
from bertray.score.standing import Standing

Make = Callable[..., ScoreConfig]


def standing(plan: Plan, **found: Any) -> Standing:
    none: tuple[()] = ()
    rest = {"done": none, "pending": none, "stale": none, "outdated": none, "vanished": none}
    return Standing(plan=plan, index=Index("nowhere", Digests("m", "s")), **(rest | found))


NOTHING = standing(Plan((), ()))


def config(**settings: str) -> ScoreConfig:
    words = {"model.path": "m", "input.path": "i", "output.path": "o"} | settings
    return load_config(ScoreConfig, None, [f"{key}={value}" for key, value in words.items()])


@pytest.fixture(scope="module")
def bundle(classifier_folder: Path) -> Bundle:
    return open_bundle(str(classifier_folder))


def split(name: str, rows: int = 2) -> Split:
    return Split("in", f"{name}.parquet", "v1", 100, 0, 1, 1, rows, 100, f"{name}.parquet")


def receipt(of: Split, *, rows: int | None = None, fault: str | None = None) -> Receipt:
    if fault is not None:
        return Receipt.of_fault(of, fault)
    return Receipt(of.id, of.output, "v9", of.num_rows if rows is None else rows, {}, {}, {})


def test_a_new_folder_takes_the_contract_and_an_equal_run_is_welcome(
    tmp_path: Path, bundle: Bundle
) -> None:
    output = str(tmp_path / "out")
    agree(output, contract_of(config(), bundle), NOTHING, replace=False)
    agree(output, contract_of(config(**{"input.path": "moved"}), bundle), NOTHING, replace=False)


def test_another_lake_whose_shards_have_equal_names_is_refused_and_a_moved_one_is_not(
    tmp_path: Path, bundle: Bundle
) -> None:
    output = str(tmp_path / "out")
    one, two = (contract_of(config(**{"input.path": f"{tmp_path}/{n}"}), bundle) for n in "ab")
    agree(output, one, NOTHING, replace=False)
    a = split("a")
    for at_stake in ({"stale": ("a.parquet",)}, {"vanished": ("b.parquet",)}):
        other_lake = standing(Plan((a,), ()), **at_stake)
        with pytest.raises(OutputError, match=r"scored from .*/a, this run reads .*/b"):
            agree(output, two, other_lake, replace=False)
        moved = standing(Plan((a,), ()), done=(receipt(a),), **at_stake)
        agree(output, one, moved, replace=False)
    agree(output, two, moved, replace=False)
    assert read_contract(output).input == two.input
    agree(output, two, other_lake, replace=False)


def test_another_model_is_refused_with_both_named(tmp_path: Path, bundle: Bundle) -> None:
    output = str(tmp_path)
    agree(output, contract_of(config(), bundle), NOTHING, replace=False)
    other = Bundle("other", "other", bundle.folder, bundle.labels, bundle.task, 64, "f" * 64)
    with pytest.raises(OutputError) as error:
        agree(output, contract_of(config(), other), NOTHING, replace=False)
    for name in (bundle.source, "other", bundle.digest[:12], "f" * 12, "output.replace=true"):
        assert name in str(error.value)


def test_other_settings_are_refused_with_both_values_named(tmp_path: Path, bundle: Bundle) -> None:
    output = str(tmp_path)
    agree(output, contract_of(config(), bundle), NOTHING, replace=False)
    other = contract_of(config(**{"model.max_length": "32"}), bundle)
    with pytest.raises(OutputError, match=r"model\.max_length: None there, 32 here"):
        agree(output, other, NOTHING, replace=False)


@pytest.mark.parametrize(
    "word", ["long=head_tail", "long=window", "stride=3", "max_windows=3", "aggregate=first"]
)
def test_another_way_with_long_texts_is_another_contract(
    tmp_path: Path, bundle: Bundle, word: str
) -> None:
    key, _, value = f"text.{word}".partition("=")
    agree(str(tmp_path), contract_of(config(), bundle), NOTHING, replace=False)
    other = contract_of(config(**{key: value}), bundle)
    assert other.digests.settings != contract_of(config(), bundle).digests.settings
    with pytest.raises(OutputError, match=rf"{key}: None there, {value} here"):
        agree(str(tmp_path), other, NOTHING, replace=False)


def test_a_contract_that_leaves_long_texts_as_trained_does_not_speak_of_them(
    bundle: Bundle,
) -> None:
    assert set(contract_of(config(), bundle).settings) == {"model", "input", "output.prefix"}


def test_another_spelling_of_the_same_model_is_the_same(tmp_path: Path, bundle: Bundle) -> None:
    agree(str(tmp_path), contract_of(config(), bundle), NOTHING, replace=False)
    respelt = replace(bundle, source=f"{bundle.source}/../{bundle.folder.name}/")
    agree(str(tmp_path), contract_of(config(), respelt), NOTHING, replace=False)


def test_an_output_that_is_a_file_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "file").write_text("theirs")
    with pytest.raises(OutputError, match=r"output\.path=.*file"):
        agree(str(tmp_path / "file"), contract_of(config(), bundle), NOTHING, replace=False)


def test_replace_starts_the_folder_over(tmp_path: Path, bundle: Bundle) -> None:
    output = tmp_path / "out"
    agree(str(output), contract_of(config(), bundle), NOTHING, replace=False)
    (output / "old.parquet").write_bytes(b"old")
    other = contract_of(config(**{"model.max_length": "32"}), bundle)
    agree(str(output), other, NOTHING, replace=True)
    assert (output / "old.parquet").exists()  # another run may be at work on it
    start_over(str(output), other, NOTHING)
    assert [path.name for path in output.iterdir()] == ["_contract.json"]
    agree(str(output), other, NOTHING, replace=False)


def test_a_run_whose_output_was_started_over_meanwhile_is_told_so_and_writes_no_manifest(
    tmp_path: Path, bundle: Bundle
) -> None:
    output, one = str(tmp_path / "out"), contract_of(config(), bundle)
    agree(output, one, NOTHING, replace=False)
    raise_if_taken(output, one.digests)
    other = contract_of(config(**{"model.max_length": "32"}), bundle)
    start_over(output, other, NOTHING)
    with pytest.raises(OutputError, match=rf"started over.*{one.digests.settings[:12]}"):
        raise_if_taken(output, one.digests)
    a = split("a")
    with pytest.raises(OutputError, match="started over"):
        complete(output, one, standing(Plan((a,), ())), [receipt(a)])
    assert not (tmp_path / "out/_manifest.json").exists()


def test_of_two_runs_that_start_a_folder_over_at_once_one_is_refused(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path / "out")
    agree(output, contract_of(config(), bundle), NOTHING, replace=False)
    one, two = (contract_of(config(**{"model.max_length": n}), bundle) for n in ("32", "33"))
    real = storage.put_json

    def while_another_does(*args: Any, **options: Any) -> bool:
        monkeypatch.undo()
        start_over(output, two, NOTHING)
        return real(*args, **options)

    monkeypatch.setattr(storage, "put_json", while_another_does)
    with pytest.raises(OutputError, match=r"model\.max_length: 33 there, 32 here"):
        start_over(output, one, NOTHING)
    assert read_contract(output) == two


def test_a_folder_with_somebody_elses_files_is_refused_even_with_replace(
    tmp_path: Path, bundle: Bundle
) -> None:
    (tmp_path / "precious.txt").write_text("theirs")
    for given_up in (False, True):
        with pytest.raises(OutputError, match="did not write"):
            agree(str(tmp_path), contract_of(config(), bundle), NOTHING, replace=given_up)
    assert (tmp_path / "precious.txt").read_text() == "theirs"


@pytest.mark.parametrize(
    ("output", "source"),
    [
        ("in", "in"),
        ("in/scored", "in"),
        ("in/deep/scored/", "in"),
        ("in/scored", "in/**/*.parquet"),
        ("in/../in/scored", "in"),
        ("scored", "scored/day=1"),
        ("link", "in"),
    ],
)
def test_an_output_and_an_input_inside_each_other_are_refused(
    tmp_path: Path, output: str, source: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(OutputError, match="inside the other"):
        check_place(f"{tmp_path}/{output}", f"{tmp_path}/{source}")
    check_place(str(tmp_path / "in-scored"), str(tmp_path / "in"))


@pytest.mark.parametrize(
    ("output", "source"),
    [("s3a://lake/in/scored", "s3://lake/in"), ("s3://lake/in", "s3a://lake/in/*.parquet")],
)
def test_a_place_is_the_same_by_whichever_of_its_names(
    fault_proxy: object, monkeypatch: pytest.MonkeyPatch, output: str, source: str
) -> None:
    monkeypatch.setattr(storage, "exists", lambda uri: False)
    with pytest.raises(OutputError, match="inside the other"):
        check_place(output, source)
    check_place("s3a://lake/in-scored", "s3://lake/in")


def test_a_lake_that_was_named_otherwise_when_the_folder_was_begun_is_the_same_lake(
    tmp_path: Path, bundle: Bundle, fault_proxy: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "without_pattern", lambda uri: uri)
    contract = contract_of(config(**{"input.path": "s3://lake/in"}), bundle)
    output = str(tmp_path)
    as_it_was = replace(contract, input="s3a://lake/in")
    storage.put_json(storage.join(output, "_contract.json"), asdict(as_it_was))
    rewritten = standing(Plan((split("a"),), ()), vanished=("old.parquet",))
    agree(output, contract, rewritten, replace=False)
    other = replace(contract, input="s3://other/in")
    with pytest.raises(OutputError, match="s3://other/in"):
        agree(output, other, rewritten, replace=False)


def test_the_manifest_lists_every_file_and_success_stands_only_when_all_are_there(
    tmp_path: Path, bundle: Bundle
) -> None:
    a, b = split("a"), split("b")
    contract = contract_of(config(), bundle)
    output = str(tmp_path)
    assert complete(output, contract, standing(Plan((a, b), ())), [receipt(b), receipt(a)]) == []
    manifest = json.loads((tmp_path / "_manifest.json").read_text())
    assert [file["path"] for file in manifest["files"]] == ["a.parquet", "b.parquet"]
    assert manifest["rows"] == 4
    assert (tmp_path / "_SUCCESS").exists()

    plan = Plan((a, b), (BadShard("c.parquet", "no footer"),))
    bad = complete(output, contract, standing(plan), [receipt(a), receipt(b, fault="bad page")])
    assert bad == [
        {"shard": "c.parquet", "reason": "no footer"},
        {"shard": "b.parquet", "reason": "bad page"},
    ]
    assert json.loads((tmp_path / "_manifest.json").read_text())["quarantined"] == bad
    assert not (tmp_path / "_SUCCESS").exists()


def test_scored_files_of_shards_that_are_gone_are_listed_and_pruned_only_when_asked(
    tmp_path: Path, bundle: Bundle
) -> None:
    a, contract, output = split("a"), contract_of(config(), bundle), str(tmp_path)
    for name in ("a", "gone", "a-00000"):
        (tmp_path / f"{name}.parquet").write_bytes(b"scored")
    found = standing(Plan((a,), ()), outdated=("a-00000.parquet",), vanished=("gone.parquet",))
    complete(output, contract, found, [receipt(a)])
    manifest = json.loads((tmp_path / "_manifest.json").read_text())
    assert manifest["vanished"] == ["gone.parquet"]
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == [
        "a.parquet",
        "gone.parquet",
    ]
    complete(output, contract, found, [receipt(a)], prune=True)
    assert json.loads((tmp_path / "_manifest.json").read_text())["vanished"] == []
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["a.parquet"]


def test_a_split_without_a_receipt_or_with_lost_rows_is_never_called_complete(
    tmp_path: Path, bundle: Bundle
) -> None:
    a, b = split("a"), split("b")
    contract = contract_of(config(), bundle)
    with pytest.raises(OutputError, match=r"b\.parquet was not scored"):
        complete(str(tmp_path), contract, standing(Plan((a, b), ())), [receipt(a)])
    with pytest.raises(OutputError, match=r"b\.parquet has 1 rows"):
        complete(
            str(tmp_path), contract, standing(Plan((a, b), ())), [receipt(a), receipt(b, rows=1)]
        )
    assert not (tmp_path / "_SUCCESS").exists()
