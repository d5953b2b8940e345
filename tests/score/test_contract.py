import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bertray.config import ScoreConfig, load_config
from bertray.errors import OutputError
from bertray.model.bundle import Bundle, open_bundle
from bertray.score.contract import agree, check_place, complete, contract_of
from bertray.score.plan import BadShard, Plan, Split
from bertray.score.sink import Receipt

Make = Callable[..., ScoreConfig]


def config(**settings: str) -> ScoreConfig:
    words = {"model.path": "m", "input.path": "i", "output.path": "o"} | settings
    return load_config(ScoreConfig, None, [f"{key}={value}" for key, value in words.items()])


@pytest.fixture(scope="module")
def bundle(classifier_folder: Path) -> Bundle:
    return open_bundle(str(classifier_folder))


def split(name: str, rows: int = 2) -> Split:
    return Split("in", f"{name}.parquet", "v1", 100, 0, 1, rows, 100, f"{name}.parquet")


def receipt(of: Split, *, rows: int | None = None, fault: str | None = None) -> Receipt:
    return Receipt(of.id, of.output, of.num_rows if rows is None else rows, {}, {}, {}, fault)


def test_a_new_folder_takes_the_contract_and_an_equal_run_is_welcome(
    tmp_path: Path, bundle: Bundle
) -> None:
    output = str(tmp_path / "out")
    agree(output, contract_of(config(), bundle), replace=False)
    agree(output, contract_of(config(**{"input.path": "moved"}), bundle), replace=False)


def test_another_model_is_refused_with_both_named(tmp_path: Path, bundle: Bundle) -> None:
    output = str(tmp_path)
    agree(output, contract_of(config(), bundle), replace=False)
    other = Bundle("other", "other", bundle.folder, bundle.labels, bundle.task, 64, "f" * 64)
    with pytest.raises(OutputError) as error:
        agree(output, contract_of(config(), other), replace=False)
    for name in (bundle.source, "other", bundle.digest[:12], "f" * 12, "output.replace=true"):
        assert name in str(error.value)


def test_other_settings_are_refused_with_both_values_named(tmp_path: Path, bundle: Bundle) -> None:
    output = str(tmp_path)
    agree(output, contract_of(config(), bundle), replace=False)
    other = contract_of(config(**{"model.max_length": "32"}), bundle)
    with pytest.raises(OutputError, match=r"model\.max_length: None there, 32 here"):
        agree(output, other, replace=False)


def test_another_spelling_of_the_same_model_is_the_same(tmp_path: Path, bundle: Bundle) -> None:
    agree(str(tmp_path), contract_of(config(), bundle), replace=False)
    respelt = replace(bundle, source=f"{bundle.source}/../{bundle.folder.name}/")
    agree(str(tmp_path), contract_of(config(), respelt), replace=False)


def test_an_output_that_is_a_file_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "file").write_text("theirs")
    with pytest.raises(OutputError, match=r"output\.path=.*file"):
        agree(str(tmp_path / "file"), contract_of(config(), bundle), replace=False)


def test_replace_starts_the_folder_over(tmp_path: Path, bundle: Bundle) -> None:
    output = tmp_path / "out"
    agree(str(output), contract_of(config(), bundle), replace=False)
    (output / "old.parquet").write_bytes(b"old")
    other = contract_of(config(**{"model.max_length": "32"}), bundle)
    agree(str(output), other, replace=True)
    assert [path.name for path in output.iterdir()] == ["_contract.json"]
    agree(str(output), other, replace=False)


def test_a_folder_with_somebody_elses_files_is_refused_even_with_replace(
    tmp_path: Path, bundle: Bundle
) -> None:
    (tmp_path / "precious.txt").write_text("theirs")
    for start_over in (False, True):
        with pytest.raises(OutputError, match="did not write"):
            agree(str(tmp_path), contract_of(config(), bundle), replace=start_over)
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


def test_the_manifest_lists_every_file_and_success_stands_only_when_all_are_there(
    tmp_path: Path, bundle: Bundle
) -> None:
    a, b = split("a"), split("b")
    contract = contract_of(config(), bundle)
    output = str(tmp_path)
    assert complete(output, contract, Plan((a, b), ()), [receipt(b), receipt(a)]) == []
    manifest = json.loads((tmp_path / "_manifest.json").read_text())
    assert [file["path"] for file in manifest["files"]] == ["a.parquet", "b.parquet"]
    assert manifest["rows"] == 4
    assert (tmp_path / "_SUCCESS").exists()

    plan = Plan((a, b), (BadShard("c.parquet", "no footer"),))
    bad = complete(output, contract, plan, [receipt(a), receipt(b, fault="bad page")])
    assert bad == [
        {"shard": "c.parquet", "reason": "no footer"},
        {"shard": "b.parquet", "reason": "bad page"},
    ]
    assert json.loads((tmp_path / "_manifest.json").read_text())["quarantined"] == bad
    assert not (tmp_path / "_SUCCESS").exists()


def test_a_split_without_a_receipt_or_with_lost_rows_is_never_called_complete(
    tmp_path: Path, bundle: Bundle
) -> None:
    a, b = split("a"), split("b")
    contract = contract_of(config(), bundle)
    with pytest.raises(OutputError, match=r"b\.parquet was not scored"):
        complete(str(tmp_path), contract, Plan((a, b), ()), [receipt(a)])
    with pytest.raises(OutputError, match=r"b\.parquet has 1 rows"):
        complete(str(tmp_path), contract, Plan((a, b), ()), [receipt(a), receipt(b, rows=1)])
    assert not (tmp_path / "_SUCCESS").exists()
