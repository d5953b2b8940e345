import errno
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from huggingface_hub.utils import logging as hub_logging

from bertray import cli
from bertray.config import ReportConfig, TrainConfig
from bertray.errors import ConfigError

Write = Callable[..., Path]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and what a user reads on stderr; fails if a cluster was started."""
    code = cli.main(list(words))
    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized()
    return code, " ".join(capsys.readouterr().err.split())


@pytest.fixture(autouse=True)
def _no_cluster() -> None:
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


def cpu_seconds_of_children() -> float:
    """Which a busy machine makes no longer."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_help_answers_in_under_a_second_without_ray_or_torch() -> None:
    code = (
        "import sys; from bertray.cli import main; main(['--help']); "
        "print(sorted({'ray', 'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    times = []
    for _ in range(3):
        start = cpu_seconds_of_children()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        times.append(cpu_seconds_of_children() - start)
    assert "score" in done.stdout
    assert done.stderr.strip().endswith("[]")
    assert min(times) < 1.0


@pytest.mark.parametrize("command", ["train", "evaluate", "score", "report", "nightly", "doctor"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert "key=value" in printed
    assert "docs/configuration.md" in printed


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("score --debug", "it goes before the command: bertray --debug score ..."),
        ("train --model.base=x", "settings are written without dashes: model.base=..."),
        ("score model.path X", "model.path is a setting; write model.path=... with its value"),
        ("explain M a dull film", 'put the text in quotes, as in bertray explain MODEL "a dull'),
    ],
)
def test_words_in_the_wrong_form_are_answered_with_the_right_one(
    words: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = run(capsys, *words.split())
    assert code == 2
    assert wanted in message


def test_doctor_takes_the_config_of_a_night(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []
    monkeypatch.setattr("bertray.doctor.examine", lambda config: seen.append(config) or [])
    (tmp_path / "night.yaml").write_text("night: {sample_rows: 9}\nalert: {on: always}\n")
    words = [str(tmp_path / "night.yaml"), *score_words("m", "i", "o")]
    assert cli.main(["doctor", *words]) == 0
    assert seen[0].model.path == "m"


def test_each_try_to_reach_the_hub_is_not_told() -> None:
    cli._log()
    hub_logging.set_verbosity_warning()  # as when it is imported
    assert not logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)


def test_an_unknown_command_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = run(capsys, "scor")
    assert code == 2
    assert "scor" in message


def test_two_config_files_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = run(capsys, "score", "a.yaml", "b.yaml")
    assert code == 2
    assert "one config file at most, found a.yaml, b.yaml" in message


@pytest.mark.parametrize("place", ["lake/day=2026-11-26", "./day=1/hour=2", "s3://lake/day=1"])
def test_a_folder_of_a_partition_is_no_setting(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found: list[str] = []

    def read(config: ReportConfig) -> None:
        found.append(config.input.path)
        raise ConfigError("seen")

    monkeypatch.setattr("bertray.report.run.report", read)
    assert cli.main(["report", place, "model.path=m"]) == 2
    assert found == [place]


def test_a_config_may_lie_in_a_folder_of_a_partition(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "day=1").mkdir()
    (tmp_path / "day=1/score.yaml").write_text("model: {path: m}\nwrong: {such: key}\n")
    code, message = run(capsys, "score", f"{tmp_path}/day=1/score.yaml", "pool.max_actors=2")
    assert code == 2
    assert "no section 'wrong'" in message


@pytest.mark.parametrize(
    "word",
    [
        "search.keys={optim.learning_rate: {low: 1e-5, high: 1e-4, log: true}}",
        "training.class_weights.5 stars=2.0",
        "training.class_weights.n/a=2.0",
        "data.train=s3://lake/day=1",
    ],
)
def test_a_key_with_a_value_is_a_setting_whatever_the_value(word: str) -> None:
    assert cli._is_setting(word, TrainConfig)


@pytest.fixture
def inbox(write_shards: Write) -> Path:
    table = pa.table({"text": ["good", "bad"], "stars": [5, 1], "label": ["a", "a"]})
    return write_shards({"a": table})


def score_words(model: object, source: object, output: object, *words: str) -> list[str]:
    return [f"model.path={model}", f"input.path={source}", f"output.path={output}", *words]


def test_a_missing_input_is_named_before_a_cluster_starts(
    classifier_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = score_words(classifier_folder, tmp_path / "gone", tmp_path / "out")
    code, message = run(capsys, "score", *words)
    assert code == 2
    assert f"input.path={tmp_path}/gone: no such file or folder" in message


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("input.text=body", "no column 'body' (columns: text, stars, label); set input.text"),
        ("input.text=stars", "column 'stars' is int64, expected string; set input.text"),
        ("input.text_pair=gone", "no column 'gone'"),
        ("input.columns=[text, gone]", "set input.columns"),
    ],
)
def test_a_wrong_column_is_named_with_its_key(
    classifier_folder: Path,
    inbox: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    word: str,
    wanted: str,
) -> None:
    code, message = run(
        capsys, "score", *score_words(classifier_folder, inbox, tmp_path / "out", word)
    )
    assert code == 2
    assert wanted in message
    assert not (tmp_path / "out").exists()


def test_a_clash_with_a_scored_column_is_an_error_before_anything_runs(
    classifier_folder: Path,
    write_shards: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_shards({"a": pa.table({"text": ["x"], "predicted_label": ["y"]})})
    code, message = run(capsys, "score", *score_words(classifier_folder, source, tmp_path / "out"))
    assert code == 2
    assert "overwrite predicted_label; set output.prefix" in message


def test_a_model_without_a_head_is_refused(
    inbox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    BertModel(config).save_pretrained(tmp_path / "encoder")
    code, message = run(
        capsys, "score", *score_words(tmp_path / "encoder", inbox, tmp_path / "out")
    )
    assert code == 2
    assert "has no classification head; fine-tune it first with `bertray train" in message


def test_a_model_that_is_not_there_is_refused(
    inbox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = run(capsys, "score", *score_words(tmp_path, inbox, tmp_path / "out"))
    assert code == 2
    assert "no config.json in there" in message
    code, message = run(capsys, "score", *score_words("no/such-model", inbox, tmp_path / "out"))
    assert code == 2
    assert "model.path=no/such-model: no such folder" in message


def test_an_output_that_is_not_ours_is_refused_and_left_alone(
    classifier_folder: Path, inbox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious.txt").write_text("theirs")
    code, message = run(capsys, "score", *score_words(classifier_folder, inbox, tmp_path / "out"))
    assert code == 2
    assert "output.path=" in message
    assert "did not write" in message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    "word", ["model.max_length=9999", "model.backend=onnx model.dtype=float16"]
)
def test_a_run_that_cannot_start_leaves_the_old_output_alone(
    classifier_folder: Path,
    inbox: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    word: str,
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "_contract.json").write_text("{}")
    (out / "a.parquet").write_text("last night's")
    words = score_words(classifier_folder, inbox, out, *word.split(), "output.replace=true")
    code, message = run(capsys, "score", *words)
    assert code == 2
    assert word.split(maxsplit=1)[0] in message
    assert (out / "a.parquet").read_text() == "last night's"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_an_output_that_cannot_be_written_is_the_users_to_mend(
    classifier_folder: Path,
    inbox: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    def refused(*_: object, **options: object) -> bool:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("bertray.storage.local.publish", refused)
    out = tmp_path / "out"
    status, message = run(capsys, "score", *score_words(classifier_folder, inbox, out))
    assert status == 2
    assert f"{out}/_contract.json: cannot be written to: {os.strerror(code)}" in message


def test_a_bug_is_told_from_a_users_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(cli, "load_config", broken)
    code, message = run(capsys, "score", "input.path=x")
    assert code == 1
    assert "unforeseen ZeroDivisionError: of ours" in message
    with pytest.raises(ZeroDivisionError):
        cli.main(["--debug", "score", "input.path=x"])
    cli._state["debug"] = False
