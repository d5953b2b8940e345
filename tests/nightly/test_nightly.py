"""Each night scores what is new, says what it was like, and leaves one page; twice is once."""

import html
import http.server
import json
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scored_here import SECONDS, score_here

from bertray import cli, storage
from bertray.config import EvaluateConfig, NightlyConfig, load_config
from bertray.errors import ConfigError, ModelError, SchemaError
from bertray.evaluate.evaluation import Verdict
from bertray.lease import hold
from bertray.model import store
from bertray.model.bundle import open_bundle
from bertray.nightly import run
from bertray.nightly.history import read_nights
from bertray.nightly.run import Outcome, nightly
from bertray.score.manifest import MANIFEST

ROWS = 400
UNSPEAKABLE = "no number can be given to this"


def by_length(texts: Sequence[str | None]) -> np.ndarray:
    """The longer a text, the better; one text breaks the model."""
    lengths = np.array([len(text or "") for text in texts], float)
    good = np.clip(lengths / 60, 0.02, 0.97)
    good[[text == UNSPEAKABLE for text in texts]] = np.nan
    return np.stack([(1 - good) * 0.7, (1 - good) * 0.3, good], axis=1)


@pytest.fixture(autouse=True)
def without_cluster(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Scoring in this process; gives the models that scored."""
    models: list[str] = []

    def score(config: Any, **_: object) -> Any:
        models.append(config.model.path)
        return score_here(config, by_length)

    monkeypatch.setattr(run, "score", score)
    return models


class Lake:
    """A lake that grows, and the job that watches it."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self.words = root, [f"model.path={model}"]
        self.random = np.random.default_rng(0)
        (root / "in").mkdir()

    def grow(self, name: str, *, mean: float = 30) -> None:
        lengths = np.clip(self.random.normal(mean, 10, ROWS), 3, 120).astype(int)
        table = pa.table({"text": ["a" * length for length in lengths]})
        pq.write_table(table, self.root / "in" / f"{name}.parquet")

    def night(self, *words: str, **hooks: Any) -> Outcome:
        fixed = [f"input.path={self.root / 'in'}", f"output.path={self.root / 'out'}"]
        return nightly(load_config(NightlyConfig, None, [*self.words, *fixed, *words]), **hooks)


@pytest.fixture
def lake(tmp_path: Path, classifier_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    days = iter(range(100))

    class Clock:
        """A day a night, lest two share a second."""

        @staticmethod
        def now(_: object) -> datetime:
            return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=next(days))

    monkeypatch.setattr(run, "datetime", Clock)
    return Lake(tmp_path, classifier_folder)


def test_a_night_scores_and_reports_what_is_new_and_a_second_run_does_nothing(lake: Lake) -> None:
    lake.grow("a")
    lake.grow("b")
    first = lake.night()
    assert first.night is not None
    assert first.night.num_rows_new == 2 * ROWS
    again = lake.night()
    assert again.night is None
    assert again.page == first.page
    lake.grow("c")
    second = lake.night()
    assert second.night is not None
    assert (second.night.num_rows_new, second.night.num_rows) == (ROWS, 3 * ROWS)
    assert [night.num_rows_new for night in read_nights(f"{lake.root}/out-nights")] == [
        2 * ROWS,
        ROWS,
    ]
    index = Path(second.index).read_text()
    assert Path(first.page).name in index
    assert Path(second.page).name in index
    page = Path(second.page).read_text()
    assert Path(first.page).name in page
    assert "New rows, by what became of them" in page
    assert f"The shards hold {3 * ROWS:,} rows, as many as the folder" in page
    assert "could not be scored" not in page
    for chart in ("New rows of 2 nights", "Shares of the labels, 2 nights"):
        assert chart in index
        assert chart in page
    rate = 2 * ROWS / SECONDS  # of the first night
    assert f"{rate:,.1f}</td>" in page


def test_a_night_that_was_cut_off_before_its_page_is_made_up_for_by_the_next(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.grow("a")
    with monkeypatch.context() as patch:
        patch.setattr(run, "report", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            lake.night()
    assert storage.exists(storage.join(str(lake.root / "out"), MANIFEST))
    outcome = lake.night()
    assert outcome.night is not None
    assert outcome.night.num_rows_new == ROWS


def test_a_shift_of_a_night_is_its_verdict_and_nights_alike_have_none(lake: Lake) -> None:
    for number in range(7):
        lake.grow(f"{number}")
        outcome = lake.night()
        assert outcome.night is not None
        assert outcome.night.drifted == ()
    lake.grow("shifted", mean=60)
    outcome = lake.night()
    assert outcome.night is not None
    assert {"label", "length"} <= set(outcome.night.drifted)
    assert "drift of" in Path(outcome.index).read_text()


def test_a_quarantined_shard_is_told_of_until_it_is_gone_or_mended(
    lake: Lake, capsys: pytest.CaptureFixture[str]
) -> None:
    lake.grow("a")
    (lake.root / "in" / "broken.parquet").write_bytes(b"PAR1 nothing")
    words = [*lake.words, f"input.path={lake.root / 'in'}", f"output.path={lake.root / 'out'}"]
    assert cli.main(["nightly", *words]) == cli.QUARANTINED
    assert cli.main(["nightly", *words]) == cli.QUARANTINED  # nothing new, and still not well
    assert len(read_nights(f"{lake.root}/out-nights")) == 1
    assert "shards quarantined: 1" in " ".join(capsys.readouterr().out.split())
    (lake.root / "in" / "broken.parquet").unlink()
    assert cli.main(["nightly", *words]) == cli.DONE
    assert read_nights(f"{lake.root}/out-nights")[-1].trouble == ""


def test_a_new_champion_waits_or_scores_all_rows_anew_as_told(
    lake: Lake,
    classifier_folder: Path,
    other_classifier: Path,
    without_cluster: list[str],
) -> None:
    root = str(lake.root / "store")
    store.promote(root, store.add(root, "m", classifier_folder), why="")
    lake.words = ["model.path=store://m@champion", f"model.store={root}"]
    lake.grow("a")
    lake.night()
    store.promote(root, store.add(root, "m", other_classifier), why="")
    lake.grow("b")
    kept = lake.night()
    assert kept.night is not None
    assert kept.night.model == "store://m@1"
    assert without_cluster[-1] == "store://m@1"
    assert "store://m@2 stands by" in kept.night.notes[0]
    assert "store://m@2 stands by" in Path(kept.page).read_text()
    anew = lake.night("night.on_new_model=rescore")
    assert anew.night is not None
    assert (anew.night.model, anew.night.num_rows_new) == ("store://m@2", 2 * ROWS)
    assert lake.night("night.on_new_model=rescore").night is None
    store.promote(root, store.find(root, "store://m@1"), why="the other one was worse")
    back = lake.night("night.on_new_model=rescore")
    assert back.night is not None
    assert (back.night.model, back.night.num_rows_new) == ("store://m@1", 2 * ROWS)


def test_what_was_removed_to_be_scored_again_is_reported_again(lake: Lake) -> None:
    for name in "ab":
        lake.grow(name)
        lake.night()
    (lake.root / "out" / "a.parquet").unlink()
    outcome = lake.night()
    assert outcome.night is not None
    assert outcome.night.num_rows_new == ROWS


def test_a_dry_run_says_what_the_night_would_score_and_does_nothing(
    lake: Lake, capsys: pytest.CaptureFixture[str]
) -> None:
    lake.grow("a")
    words = [*lake.words, f"input.path={lake.root / 'in'}", f"output.path={lake.root / 'out'}"]
    assert cli.main(["nightly", *words, "--dry-run"]) == cli.DONE
    assert f"score {ROWS} rows in 1 splits" in " ".join(capsys.readouterr().out.split())
    assert [path.name for path in lake.root.iterdir()] == ["in"]


def test_nights_with_other_limits_on_splits_are_compared(lake: Lake) -> None:
    lake.grow("a")
    lake.night()
    lake.grow("b")
    assert lake.night("input.max_split_rows=100", "input.max_split_bytes=1000000").night
    one, two = read_nights(f"{lake.root}/out-nights")
    assert (one.digests, two.num_rows_new) == (two.digests, ROWS)


def test_drift_fails_the_night_only_where_asked(lake: Lake) -> None:
    words = [*lake.words, f"input.path={lake.root / 'in'}", f"output.path={lake.root / 'out'}"]
    lake.grow("a")
    assert cli.main(["nightly", *words]) == cli.DONE
    lake.grow("b", mean=90)
    words.append("night.fail_on_drift=true")
    assert cli.main(["nightly", *words]) == cli.REFUSED
    assert cli.main(["nightly", *words]) == cli.REFUSED  # tried again by a scheduler
    lake.grow("c")
    assert cli.main(["nightly", *words]) == cli.DONE


def test_a_first_night_without_a_prediction_is_nothing_to_compare_with(lake: Lake) -> None:
    empty = pa.table({"text": pa.array([], pa.string())})
    pq.write_table(empty, lake.root / "in" / "0.parquet")
    lake.night()
    nulls = pa.table({"text": pa.nulls(ROWS, pa.string())})
    pq.write_table(nulls, lake.root / "in" / "1.parquet")
    lake.night()
    lake.grow("2")
    first = lake.night()
    assert first.report is not None
    assert first.report.verdicts == ()
    lake.grow("3", mean=90)
    outcome = lake.night()
    assert outcome.night is not None
    assert {"label", "length"} <= set(outcome.night.drifted)


def test_a_model_that_has_moved_is_looked_for_where_it_is_now(lake: Lake, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(lake.words[0].removeprefix("model.path="), old)
    lake.words = [f"model.path={old}", "explain.num_rows=1"]
    lake.grow("a")
    lake.night()
    old.rename(new)
    lake.words[0] = f"model.path={new}"
    lake.grow("b")
    outcome = lake.night()
    assert outcome.report is not None
    assert outcome.report.num_examples > 0


@pytest.mark.parametrize(
    ("word", "wrong"),
    [
        ("night.label=nolabel", "no column 'nolabel'.*set night.label"),
        ("night.evaluation=nowhere", "night.evaluation=nowhere: no metrics.json"),
        ("alert.webhook=secret", "alert.webhook: expected a URL that begins with https"),
        ("input.columns=[] explain.num_rows=1", "explain.num_rows: .* will not hold .* 'text'"),
        (
            "input.columns=[text] input.text_pair=b explain.num_rows=1",
            "explain.num_rows: .* will not hold .* 'b'",
        ),
        ("challenger.train=no.yaml challenger.evaluate=no.yaml", "no.yaml"),
    ],
)
def test_what_a_night_cannot_do_at_its_end_is_said_before_a_row_is_scored(
    lake: Lake, capsys: pytest.CaptureFixture[str], word: str, wrong: str
) -> None:
    lake.grow("a")
    fixed = [f"input.path={lake.root / 'in'}", f"output.path={lake.root / 'out'}"]
    words = [*lake.words, *fixed, *word.split()]
    for options in [["--dry-run"], []] if "challenger" not in word else [["--dry-run"]]:
        assert cli.main(["nightly", *words, *options]) == 2
        said = capsys.readouterr().err
        assert re.search(wrong, said)
        assert "secret" not in said
    assert not list(lake.root.glob("out/*"))


def test_some_shards_may_lack_the_label_or_be_none_of_ours(lake: Lake) -> None:
    shards = {
        "alien": pa.table({"x": [1]}),
        "first": pa.table({"text": ["aa"]}),
        "last": pa.table({"text": ["aa"], "truth": ["bad"]}),
        "null": pa.table({"text": ["aa"], "truth": pa.nulls(1)}),
    }
    for name, table in shards.items():
        pq.write_table(table, lake.root / "in" / f"{name}.parquet")
    outcome = lake.night("night.label=truth")
    assert outcome.night is not None
    assert (outcome.night.num_rows_new, outcome.num_shards_quarantined) == (3, 1)


@pytest.mark.parametrize(
    ("truth", "says"),
    [
        (["bad", "bad", "good"], "3 scored rows that have a true label"),
        (pa.array(["bad", "bad", "good"]).dictionary_encode(), "3 scored rows that have"),
        ([0, 0, 2], "3 scored rows that have a true label"),
        (pa.nulls(3), "every row of every shard is here"),
        (["pending"] * 3, "were not held against true labels: input.label=truth: its values"),
        ([True, False, True], "were not held against true labels: input.label=truth: its values"),
        ([0.5, 0.5, 0.5], "were not held against true labels: .* is double"),
        (None, "were not held against true labels: .* no column 'truth'"),
    ],
)
def test_labels_that_cannot_be_used_cost_a_night_what_they_would_have_told(
    lake: Lake, truth: Any, says: str
) -> None:
    texts = ["a" * 3, "b" * 4, "c" * 100]  # bad, bad, good
    pq.write_table(pa.table({"text": texts, "truth": ["bad"] * 3}), lake.root / "in" / "a.parquet")
    lake.night("night.label=truth")
    table = pa.table({"text": texts} | ({} if truth is None else {"truth": truth}))
    pq.write_table(table, lake.root / "in" / "b.parquet")
    outcome = lake.night("night.label=truth")
    assert outcome.night is not None
    assert re.search(says, html.unescape(Path(outcome.page).read_text()))


def test_a_night_whose_only_news_is_a_broken_shard_needs_no_labels(lake: Lake) -> None:
    pq.write_table(pa.table({"text": ["a"], "truth": ["bad"]}), lake.root / "in" / "a.parquet")
    lake.night("night.label=truth")
    (lake.root / "in" / "broken.parquet").write_bytes(b"PAR1 nothing")
    outcome = lake.night("night.label=truth")
    assert outcome.num_shards_quarantined == 1
    assert "1 shard could not be scored" in Path(outcome.page).read_text()
    assert "do not hold the column" not in Path(outcome.page).read_text()


def test_shards_may_hold_texts_and_labels_in_any_arrow_type(lake: Lake) -> None:
    texts = pa.array(["aa", "bb", None])
    shards = {
        "a": (texts, pa.array(["0", "1", "2"])),
        "b": (texts.dictionary_encode(), pa.array([0, 1, 2])),
        "c": (texts.cast(pa.large_string()), pa.array([0, 1, 2], pa.int8())),
        "d": (texts.cast(pa.string_view()), pa.array(["0", "1", "2"]).dictionary_encode()),
    }
    for name, (text, group) in shards.items():
        table = pa.table({"text": text, "truth": group})
        pq.write_table(table, lake.root / "in" / f"{name}.parquet")
    outcome = lake.night("night.label=truth")
    assert outcome.report is not None
    assert outcome.report.profile.counts["length"]
    assert outcome.report.num_rows == 12


def test_rows_without_a_prediction_fail_their_night_alone(lake: Lake) -> None:
    words = [*lake.words, f"input.path={lake.root / 'in'}", f"output.path={lake.root / 'out'}"]
    pq.write_table(pa.table({"text": [UNSPEAKABLE, "a"]}), lake.root / "in" / "a.parquet")
    assert cli.main(["nightly", *words]) == cli.QUARANTINED
    assert cli.main(["nightly", *words]) == cli.QUARANTINED  # nobody has looked yet
    lake.grow("b")
    assert cli.main(["nightly", *words]) == cli.DONE


def test_nights_have_a_folder_of_their_own(lake: Lake) -> None:
    lake.grow("a")
    with pytest.raises(ConfigError, match=r"history.path=.* is output.path too: .* leave it out"):
        lake.night(f"history.path={lake.root / 'out'}/")


def test_a_night_does_not_go_on_with_a_model_that_was_written_over(
    lake: Lake, other_classifier: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(lake.words[0].removeprefix("model.path="), model)
    lake.words = [f"model.path={model}"]
    lake.grow("a")
    lake.night()
    shutil.rmtree(model)
    shutil.copytree(other_classifier, model)
    lake.grow("b")
    with pytest.raises(ModelError, match=r"is not the model any more .*on_new_model=rescore"):
        lake.night()
    outcome = lake.night("night.on_new_model=rescore")
    assert outcome.night is not None
    assert outcome.night.num_rows_new == 2 * ROWS


def test_two_nights_at_once_are_one_after_the_other(lake: Lake) -> None:
    lake.grow("a")
    waited = threading.Event()
    outcomes: list[Outcome] = []
    history = f"{lake.root}/out-nights"
    with hold(history, on_wait=lambda _: None):
        second = threading.Thread(
            target=lambda: outcomes.append(lake.night(on_wait=lambda _: waited.set()))
        )
        second.start()
        assert waited.wait(20)
        assert not storage.exists(f"{lake.root}/out")
    second.join(60)
    assert outcomes[0].night is not None


def test_a_challenger_that_never_was_measured_has_no_metrics_to_show(
    lake: Lake, tmp_path: Path
) -> None:
    for name in ("train", "evaluate"):
        (tmp_path / f"{name}.yaml").write_text("nonsense: 1\n")
        lake.words.append(f"challenger.{name}={tmp_path / name}.yaml")
    lake.grow("a")
    outcome = lake.night(f"night.evaluation={tmp_path / 'report'}")
    assert outcome.night is not None
    assert outcome.night.num_rows_new == ROWS


def test_a_night_whose_few_labels_are_all_wrong_is_reported(lake: Lake) -> None:
    table = pa.table({"text": ["a" * 100], "truth": ["bad"]})  # predicted to be good
    pq.write_table(table, lake.root / "in" / "a.parquet")
    outcome = lake.night("night.label=truth")
    assert outcome.night is not None
    assert "Against true labels" in Path(outcome.page).read_text()


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that takes the second POST of each alert; gives its address and what it took."""
    taken: list[dict[str, Any]] = []
    calls = iter(range(1_000))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            fails = next(calls) % 2 == 0
            if not fails:
                taken.append(json.loads(body))
            self.send_response(503 if fails else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", taken
    server.shutdown()
    server.server_close()


def test_the_webhook_is_told_of_trouble_and_tried_again(
    lake: Lake, webhook: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, taken = webhook
    lake.grow("a")
    lake.night(f"alert.webhook={address}")
    assert taken == []
    with monkeypatch.context() as patch:
        patch.setattr(run, "put_night", lambda *_: 1 / 0)
        lake.grow("b", mean=90)
        with pytest.raises(ZeroDivisionError):
            lake.night(f"alert.webhook={address}")
    assert taken.pop()["trouble"].startswith("failed: ")
    assert taken.pop()["drifted"]  # a night that is cut off later has been told of
    (lake.root / "in" / "broken.parquet").write_bytes(b"PAR1 nothing")
    outcome = lake.night(f"alert.webhook={address}")
    (told,) = taken
    assert told["quarantined"][0]["shard"] == "broken.parquet"
    assert told["page"] == outcome.page
    everything = b"".join(path.read_bytes() for path in lake.root.rglob("*") if path.is_file())
    assert address.encode() not in everything


def test_the_webhook_is_told_of_a_night_that_failed(
    lake: Lake, webhook: tuple[str, list[dict[str, Any]]]
) -> None:
    url, taken = webhook
    lake.grow("a")
    with pytest.raises(SchemaError):
        lake.night(f"alert.webhook={url}", "night.label=nolabel")
    (message,) = taken
    assert message["trouble"].startswith("failed: ")
    assert "set night.label" in message["text"]
    assert str(lake.root / "out") in message["text"]


def test_a_webhook_that_is_away_is_a_warning_without_its_address(
    lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    lake.grow("a")
    outcome = lake.night("alert.webhook=http://127.0.0.1:9/secret", "alert.on=always")
    assert outcome.night is not None
    assert "nobody took the alert" in caplog.text
    assert "secret" not in caplog.text


def test_a_challenger_that_fails_costs_no_row_its_label(lake: Lake, tmp_path: Path) -> None:
    for name in ("train", "evaluate"):
        (tmp_path / f"{name}.yaml").write_text("nonsense: 1\n")
    lake.grow("a")
    outcome = lake.night(
        f"challenger.train={tmp_path / 'train.yaml'}",
        f"challenger.evaluate={tmp_path / 'evaluate.yaml'}",
    )
    assert outcome.night is not None
    assert outcome.night.num_rows_new == ROWS
    assert outcome.night.notes[0].startswith("the challenger failed: ")


class Judge:
    """In place of training and evaluation: what they leave, and how often they were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lake: Lake, folder: Path) -> None:
        self.asked, self.fails, self._output = 0, False, folder / "report"
        model = lake.words[0].removeprefix("model.path=")
        configs = {
            "train": {"model": {"base": model}, "data": {"train": "x"}, "output": {"path": "y"}},
            "evaluate": {
                "model": {"path": model},
                "data": {"path": "x"},
                "output": {"path": str(self._output)},
            },
        }
        for name, config in configs.items():
            (folder / f"{name}.yaml").write_text(json.dumps(config))
            lake.words.append(f"challenger.{name}={folder / name}.yaml")
        monkeypatch.setattr(
            "bertray.train.run.train", lambda _, **__: SimpleNamespace(is_new=False)
        )
        monkeypatch.setattr("bertray.evaluate.run.evaluate", self._evaluate)

    def _evaluate(self, config: EvaluateConfig) -> Any:
        self.asked += 1
        if self.fails:
            raise PermissionError(13, "the store may not be written")
        digest = open_bundle(config.model.path).digest
        storage.put_json(str(self._output / "metrics.json"), {"model_digest": digest})
        return SimpleNamespace(verdict=Verdict((), "store://m@2", None))


def test_a_challenger_that_was_trained_and_not_judged_is_judged_by_the_next_night(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(monkeypatch, lake, tmp_path)
    lake.grow("a")
    judge.fails = True
    first = lake.night()
    assert first.night is not None
    assert first.night.notes[0].startswith("the challenger failed: PermissionError")
    judge.fails = False
    lake.grow("b")
    second = lake.night()
    assert second.night is not None
    assert second.night.notes == ("store://m@2 was promoted",)
    lake.grow("c")
    third = lake.night()
    assert third.night is not None
    assert (third.night.notes, judge.asked) == ((), 2)


def test_a_challengers_verdict_is_told_by_a_night_of_its_own_and_after_a_crash(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.grow("a")
    lake.night()
    judge = Judge(monkeypatch, lake, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(run, "report", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            lake.night()
    outcome = lake.night()  # no shard is new
    assert outcome.night is not None
    assert (outcome.night.notes, judge.asked) == (("store://m@2 was promoted",), 1)
    assert "store://m@2 was promoted" in Path(outcome.page).read_text()
    assert lake.night().night is None


def test_a_night_that_tells_a_verdict_alone_hides_no_drift(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.grow("a")
    lake.night()
    lake.grow("b", mean=90)
    drifted = lake.night().drifted
    assert drifted
    Judge(monkeypatch, lake, tmp_path)
    outcome = lake.night()  # no shard is new
    assert outcome.night is not None
    assert outcome.night.num_rows_new == 0
    assert outcome.drifted == drifted


def test_no_verdict_is_lost_to_the_next_one(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.grow("a")
    judge = Judge(monkeypatch, lake, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(run, "report", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            lake.night()
    (tmp_path / "report" / "metrics.json").unlink()  # of another model, as if one was trained
    judge.fails = True
    outcome = lake.night()
    assert outcome.night is not None
    assert outcome.night.notes[0] == "store://m@2 was promoted"
    assert outcome.night.notes[1].startswith("the challenger failed")


def test_a_challenger_that_goes_on_failing_is_told_once(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(monkeypatch, lake, tmp_path)
    judge.fails = True
    lake.grow("a")
    assert lake.night().night is not None
    assert lake.night().night is None
    assert judge.asked == 2


def test_all_of_a_night_may_lie_on_s3(lake: Lake, s3: str) -> None:
    lake.grow("a")
    words = [f"output.path={s3}/out"]
    outcome = lake.night(*words)
    assert storage.get_bytes(outcome.page) is not None
    assert lake.night(*words).night is None
    assert len(read_nights(f"{s3}/out-nights")) == 1
