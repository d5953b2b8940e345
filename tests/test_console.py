import logging
from collections import Counter

import pytest

from bertray.cluster import Node, Resources
from bertray.config import Pool, ScoreConfig, TrainConfig, load_config
from bertray.console import view
from bertray.console.doctor import show_findings
from bertray.console.explain import show_explanation
from bertray.console.score import ScoreView
from bertray.console.status import show_status
from bertray.console.train import TrainView
from bertray.console.view import LOG_EVERY_S
from bertray.doctor import Finding
from bertray.report.explain import Explanation, Word
from bertray.score.plan import BadShard
from bertray.score.pool import plan_pool
from bertray.score.status import Status
from bertray.score.summary import Progress, Summary
from bertray.train.outcome import TrainSummary
from bertray.train.state import Epoch, Resumed
from bertray.train.steps import Step

CONFIG = load_config(ScoreConfig, None, ["model.path=m", "input.path=i", "output.path=o"])


def test_off_a_terminal_progress_is_one_log_line_at_times(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [1000.0]
    monkeypatch.setattr(view.time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO, "bertray")
    with ScoreView("scoring") as scoring, TrainView() as training:
        for step in range(1, 101):
            now[0] += LOG_EVERY_S / 10
            scoring.update(Progress(step * 10, 1000, step, 100))
            training.update(Step(step, 100, 1 / step, 1e-5, 1.0, 32, 700))
    assert len(caplog.messages) == 20
    assert caplog.messages[:2] == [
        "scoring rows=100/1000 splits=10/100 rows_per_s=3",
        "training step=10/100 loss=0.1000 learning_rate=1e-05 grad_norm=1 steps_per_s=0.33",
    ]
    assert capsys.readouterr() == ("", "")


def test_the_summary_tells_rows_labels_and_what_was_not_scored(
    capsys: pytest.CaptureFixture[str],
) -> None:
    summary = Summary(
        num_rows=1100,
        num_rows_scored=1000,
        stats=Counter({"num_tokens": 50_000}),
        seconds=10.0,
        status_counts=Counter({"ok": 1098, "null text": 2}),
        label_counts=Counter({"good": 900, "bad": 198}),
        quarantined=[{"shard": "x.parquet", "reason": "no footer"}],
    )
    with ScoreView("scoring") as view:
        view.finish(summary, CONFIG)
    printed, warned = (" ".join(text.split()) for text in capsys.readouterr())
    for words in ("rows 1,100", "scored now 1,000", "rows/s 100", "tokens/s 5,000"):
        assert words in printed
    assert "labelled good 900" in printed
    assert "not scored: null text 2" in printed
    assert "quarantined: x.parquet: no footer" in warned


def test_the_summary_of_a_training_tells_what_it_is_worth_and_where_it_ran(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    first, last = (
        Epoch(passes, step, 0.7, {"accuracy": accuracy}, 18, 72, 2.0)
        for passes, step, accuracy in ((2 / 3, 2, 0.75), (1, 3, 0.5))
    )
    summary = TrainSummary(
        epochs=(first, last),
        best_epoch=2 / 3,
        labels=("bad", "good"),
        num_rows=18,
        num_validation_rows=2,
        num_rows_left_out=0,
        seconds=3.0,
        device="cuda",
    )
    words = ["model.base=b", "data.train=d", "output.path=o"]
    with TrainView() as view, caplog.at_level(logging.INFO):
        view.update(first)
        view.update(Resumed(step=4, num_steps=9))
        view.finish(summary, load_config(TrainConfig, None, words))
    printed = " ".join(capsys.readouterr().out.split())
    facts = ("accuracy 0.7500", "device cuda", "tokens/s 36", "labels bad, good")
    for fact in (*facts, "best epoch 0.6667 of 1"):
        assert fact in printed
    assert caplog.messages[0].startswith("epoch=0.6667/")
    assert caplog.messages[1] == "training goes on after step 4 of 9"


def test_no_path_is_broken_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    path = "s3://lake/" + "scored-reviews/" * 9
    status = Status(
        output=path,
        input=f"{path}in",
        model=f"{path}model[1]",
        num_rows=1,
        num_rows_done=0,
        num_splits=1,
        num_splits_done=0,
        bad_rows={},
        quarantined=(BadShard(f"{path}x.parquet", "no footer"),),
        stale=(f"{path}y.parquet",),
        outdated=(),
        vanished=(),
        complete=False,
        holder=None,
        seconds=None,
    )
    show_status(status)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{path}, scored from {path}in"
    assert f"{path}model[1]" in printed[1]
    assert f"quarantined: {path}x.parquet: no footer" in printed
    assert f"{path}y.parquet: its shard has changed" in printed
    assert show_findings([Finding("input", path, advice=path)])
    assert capsys.readouterr().out == f"ok  input: {path}\n    {path}\n"


@pytest.mark.parametrize("unit", ["log-odds", "score"])
def test_an_explanation_says_what_its_numbers_are(
    unit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (Word("dull", 0, 4, False, 4.0), Word(",", 4, 5, False, 0.77))
    found = Explanation("bad", 0.99, 5.0, 0.23, words, 32, 0.0, True)
    show_explanation(found, ["dull, [x]"], unit=unit)
    text, *rows = capsys.readouterr().out.splitlines()
    assert text == "dull, [x]"
    shown = [" ".join(row.split()) for row in rows]
    assert shown == [
        "label bad, 0.99",
        "strongest words dull +4.00, ',' +0.77",
        f"what each adds to the {unit}: above 0 (green) for the label, below (red) against it",
        f"all words together +4.77 {unit} over the same text with every word masked",
    ]


def test_a_run_with_nothing_to_do_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with ScoreView("scoring") as view:
        view.finish(Summary(num_rows=5, label_counts=Counter({"good": 5})), CONFIG)
    assert "none: every shard was done already" in capsys.readouterr().out


def test_a_run_whose_shards_are_all_quarantined_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    summary = Summary(seconds=2.0, quarantined=[{"shard": "x.parquet", "reason": "bad page"}])
    with ScoreView("scoring") as view:
        view.finish(summary, CONFIG)
    assert "none: what was left to do is quarantined" in capsys.readouterr().out


def test_the_summary_says_which_stage_is_the_limit() -> None:
    stats = {
        "read_s": 1,
        "tokenize_s": 2,
        "transfer_s": 1,
        "compute_s": 15,
        "write_s": 1,
        "num_flops": 50.0,
    }
    stats |= {"num_flops": 50, "matmul_flops": 100, "num_tokens": 97, "num_padded_tokens": 100}
    two_actors = plan_pool(Pool(), Resources((Node(2),)), num_splits=9)  # one reads, one writes
    stages = Summary(stats=Counter(stats), pool=two_actors).stages()
    assert stages["busy with"] == (
        "read 5%, tokenize 10%, transfer 5%, compute 75%, write 5%; limited by compute"
    )
    assert stages["of torch's matmul rate"] == "50%"
    assert stages["padding"] == "3.0% of the tokens computed"
    unknown = Summary(stats=Counter(stats | {"num_flops": 0}), pool=two_actors).stages()
    assert "of torch's matmul rate" not in unknown
    twice = stats | {"num_tokens_again": 100}
    stages = Summary(stats=Counter(twice), pool=two_actors).stages()
    assert stages["padding"] == "3.0% of the tokens computed"
    assert stages["in doubt, computed again"] == "100.0% of the tokens"
    slow_reads = Summary(stats=Counter(stats | {"read_s": 10}), pool=two_actors).stages()
    assert slow_reads["busy with"].endswith("limited by read")
