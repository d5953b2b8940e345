import json
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bertray import cli, storage
from bertray.config import ReportConfig, load_config
from bertray.errors import DataError, ModelError, OutputError, SchemaError
from bertray.model import store
from bertray.report.run import Report, report
from bertray.report.scored import open_scored

Score = Callable[[Sequence[str], Callable[[Sequence[str | None]], np.ndarray]], None]
Write = Callable[..., Path]
ATTACK = "<script>alert(1)</script>"
LABELS = ("bad", "so-so", "good")  # of `classifier_folder`


def by_length(texts: Sequence[str | None]) -> np.ndarray:
    """The longer a text, the better: three probabilities that are never equal."""
    lengths = np.array([len(text or "") for text in texts], float)
    good = np.clip(lengths / 60, 0.02, 0.97)
    return np.stack([(1 - good) * 0.7, (1 - good) * 0.3, good], axis=1)


def run(*words: object) -> Report:
    return report(load_config(ReportConfig, None, [str(word) for word in words]))


def shards(rng: np.random.Generator, *, num: int = 3, mean: float = 30) -> dict[str, pa.Table]:
    """Texts of many lengths with a true label, a null among them."""

    def shard() -> pa.Table:
        lengths = np.clip(rng.normal(mean, 10, 80), 3, 120).astype(int)
        texts: list[str | None] = ["good film " * (n // 10) + "a" * (n % 10) for n in lengths]
        truth = [LABELS[best] for best in by_length(texts).argmax(axis=1)]
        texts[0], truth[1], truth[2] = None, "good", "bad"
        return pa.table({"text": texts, "label": truth})

    return {f"part-{number}": shard() for number in range(num)}


@pytest.fixture(scope="module")
def night(
    tmp_path_factory: pytest.TempPathFactory, classifier_folder: Path, score_here: Score
) -> Path:
    """A scored folder with a hostile row and a shard that could not be read."""
    import pyarrow.parquet as pq

    root = tmp_path_factory.mktemp("night")
    tables = shards(np.random.default_rng(0))
    hostile = pa.table({"text": [f"{ATTACK} " * 4, f"'\"{ATTACK}"], "label": ["bad", ATTACK]})
    (root / "in").mkdir()
    for name, table in (tables | {f"x{ATTACK.replace('/', '')}": hostile}).items():
        pq.write_table(table, root / "in" / f"{name}.parquet")
    (root / "in" / "broken<b>.parquet").write_bytes(b"PAR1 nothing")
    words = [f"model.path={classifier_folder}", f"input.path={root}/in", f"output.path={root}/out"]
    score_here(words, by_length)
    return root / "out"


class Page(HTMLParser):
    """The tags and the texts of a page; texts of one element are put together."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_says_how_many_rows_came_and_went_and_what_was_left_out(night: Path) -> None:
    result = run(f"input.path={night}")
    assert result.page == str(night / "_report.html")
    page = Page(night / "_report.html")
    text = " ".join(page.texts)
    assert "rows in 242 rows out 242" in text
    assert "null text" in page.texts
    assert "1 shard could not be scored" in text
    assert "broken<b>.parquet" in page.texts
    assert "scored by the last run 242 took 1 min 15 s rows a second 3" in text
    assert "2 min 11 s · 87.3%" in text
    assert json.loads((night / "_contract.json").read_text())["model_digest"] in page.texts
    assert result.num_quarantined == 1


def test_text_from_the_data_stays_text(night: Path) -> None:
    run(f"input.path={night}", "input.label=label", "explain.num_rows=1")
    page = Page(night / "_report.html")
    assert not page.all("script")
    assert not [name for _, attributes in page.tags for name in attributes if name[:2] == "on"]
    assert page.texts.count("most confident errors") == 1  # the longest text is the hostile one
    assert "".join(page.texts).replace(" ", "").count(ATTACK) > 3
    assert {"b", "img", "iframe", "link", "object"}.isdisjoint(tag for tag, _ in page.tags)


def test_the_page_needs_nothing_but_itself(night: Path) -> None:
    run(f"input.path={night}", "explain.num_rows=3")
    page = Page(night / "_report.html")
    assert len(page.source.encode()) < 3_000_000
    outside = r"""src=|href="[^#]|url\((?!#)|@import|https?://(?!www\.w3\.org)"""
    assert not re.findall(outside, page.source)
    assert "default-src 'none'" in page.source


def test_the_page_can_be_heard_as_well_as_seen(night: Path) -> None:
    run(f"input.path={night}")
    page = Page(night / "_report.html")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(level <= before + 1 for before, level in pairwise(levels))
    charts = page.all("svg")
    assert len(charts) >= 4
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    assert len(page.all("figure")) == len(charts) == len(page.all("summary")) - 1
    ids = [str(attributes["id"]) for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)


def test_a_night_of_other_lengths_is_said_to_have_drifted(
    night: Path, write_shards: Write, classifier_folder: Path, tmp_path: Path, score_here: Score
) -> None:
    source = write_shards(shards(np.random.default_rng(1), mean=50))
    words = [f"model.path={classifier_folder}", f"input.path={source}"]
    score_here([*words, f"output.path={tmp_path}/out"], by_length)
    result = run(f"input.path={tmp_path}/out", f"input.reference={night}")
    found = {one.signal: one.drifted for one in result.verdicts}
    assert found["length"]
    assert found["label"]
    assert not found["script"]
    text = " ".join(Page(tmp_path / "out/_report.html").texts)
    assert "not as on other nights: " in text
    assert "a rule of thumb, until 5 past nights" in text


def test_a_night_is_as_usual_beside_its_like(night: Path, tmp_path: Path) -> None:
    run(f"input.path={night}")
    profile = night / "_profile.json"
    page = tmp_path / "page.html"
    past = json.dumps([str(profile)] * 5)
    words = [f"input.reference={profile}", f"input.past={past}", f"output.path={page}"]
    result = run(f"input.path={night}", *words)
    assert result.verdicts
    assert not any(one.drifted for one in result.verdicts)
    text = " ".join(Page(page).texts)
    assert "nothing drifted" in text
    assert "5 past nights and chance" in text


def test_true_labels_give_confusion_and_calibration(night: Path) -> None:
    run(f"input.path={night}", "input.label=label")
    page = Page(night / "_report.html")
    assert "True labels down, predicted labels across" in page.texts
    assert "Calibration" in page.texts
    place = page.texts.index("accuracy")
    assert 0.9 < float(page.texts[place + 1]) < 1.0


def test_metrics_of_an_evaluation_are_shown_and_those_of_another_model_marked(
    night: Path, tmp_path: Path
) -> None:
    metrics = {"model_digest": "x", "data": "held/out", "rows_evaluated": 500}
    text = json.dumps({**metrics, "metrics": {"accuracy": 0.875}})
    (tmp_path / "metrics.json").write_text(text)
    run(f"input.path={night}", f"input.evaluation={tmp_path}")
    page = Page(night / "_report.html")
    assert "0.8750" in page.texts
    assert "of another model" in page.texts


def test_errors_come_first_sure_ones_among_them(night: Path) -> None:
    result = run(f"input.path={night}", "input.label=label", "explain.num_rows=2")
    page = Page(night / "_report.html")
    assert result.num_examples == 8
    for kind in ("least certain", "most confident", "most confident errors", "random"):
        assert page.texts.count(kind) == 2
    assert [attributes for attributes in page.all("mark") if attributes.get("title")]


def test_rows_that_the_model_abstained_on_are_its_least_certain(
    write_shards: Write, classifier_folder: Path, tmp_path: Path, score_here: Score
) -> None:
    source = write_shards({"a": pa.table({"text": ["a" * n for n in (5, 25, 30, 55, 58)]})})
    words = [f"model.path={classifier_folder}", f"input.path={source}", f"output.path={tmp_path}/o"]
    score_here([*words, "abstain.below=0.6"], by_length)
    assert run(f"input.path={tmp_path}/o", "explain.num_rows=2").num_examples == 5
    shown = Page(tmp_path / "o" / "_report.html").texts
    first, second = (index for index, text in enumerate(shown) if text == "least certain")
    near = " ".join(shown[first : second + 20])
    assert "a" * 25 in near
    assert "a" * 30 in near


def test_the_page_says_what_the_model_went_through(
    write_shards: Write, classifier_folder: Path, tmp_path: Path, score_here: Score
) -> None:
    root = str(tmp_path / "store")
    store.promote(root, store.add(root, "m", classifier_folder), why="better than nothing")
    source = write_shards({"a": pa.table({"text": ["a"]})})
    model = ["model.path=store://m@1", f"model.store={root}"]
    score_here([*model, f"input.path={source}", f"output.path={tmp_path}/o"], by_length)
    run(f"input.path={tmp_path}/o", *model)
    text = " ".join(Page(tmp_path / "o" / "_report.html").texts)
    assert "put into the store" in text
    assert f"by {store.who()}: better than nothing" in text


def test_a_sample_of_many_files_stays_near_the_rows_wanted(night: Path) -> None:
    run(f"input.path={night}", "input.sample_rows=60")
    assert "By a sample of 61 rows" in " ".join(Page(night / "_report.html").texts)
    profile = json.loads((night / "_profile.json").read_text())
    assert sum(profile["counts"]["status"].values()) == profile["num_rows"] == 242
    assert sum(profile["counts"]["length"].values()) <= 61


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ("input.path=/nowhere", OutputError, "not an output folder of bertray score"),
        ("input.label=gone", SchemaError, "no column 'gone'"),
        ("input.reference=/no.json", DataError, "no such profile"),
        ("input.evaluation=/nowhere", DataError, "no metrics.json"),
        ("model.path=OTHER", ModelError, "set model.path to that model"),
    ],
)
def test_what_cannot_be_used_is_named(
    night: Path,
    base_without_dropout: Path,
    words: str,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        run(f"input.path={night}", words.replace("OTHER", str(base_without_dropout)))


@pytest.mark.parametrize("whole", [True, False], ids=["all of it", "a night's files"])
def test_a_manifest_that_names_files_elsewhere_is_refused_and_they_are_not_read(
    night: Path, tmp_path: Path, whole: bool
) -> None:
    import shutil

    out = shutil.copytree(night, tmp_path / "out")
    shutil.copy(night / "part-0.parquet", tmp_path / "private.parquet")
    manifest = json.loads((out / "_manifest.json").read_text())
    manifest["files"][0]["path"] = elsewhere = "../private.parquet"
    (out / "_manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(OutputError, match=r"_manifest\.json names '\.\./private\.parquet'"):
        open_scored(str(out), only=None if whole else [elsewhere])


def test_a_model_that_is_gone_costs_the_unknown_tokens_alone(
    write_shards: Write, classifier_folder: Path, tmp_path: Path, score_here: Score
) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(classifier_folder, model)
    source = write_shards(shards(np.random.default_rng(0), num=1))
    words = [f"model.path={model}", f"input.path={source}", f"output.path={tmp_path}/out"]
    score_here(words, by_length)
    assert "unknown" in json.loads(profile_of(tmp_path / "out"))["counts"]
    shutil.rmtree(model)
    counts = json.loads(profile_of(tmp_path / "out"))["counts"]
    assert "unknown" not in counts
    assert "length" in counts
    with pytest.raises(ModelError, match="model"):
        run(f"input.path={tmp_path}/out", "explain.num_rows=1")


def profile_of(out: Path) -> str:
    run(f"input.path={out}")
    return (out / "_profile.json").read_text()


def test_a_night_on_s3_has_its_page_beside_it(
    s3: str, classifier_folder: Path, write_shards: Write, score_here: Score
) -> None:
    source = write_shards(shards(np.random.default_rng(0), num=1))
    words = [f"model.path={classifier_folder}", f"input.path={source}", f"output.path={s3}/out"]
    score_here(words, by_length)
    assert cli.main(["report", f"{s3}/out", f"input.reference={s3}/out"]) == 0
    page = storage.get_bytes(f"{s3}/out/_report.html")
    assert page is not None
    assert b"every row of every shard is here" in page
    fs, path = storage.resolve(f"{s3}/out/_report.html")
    assert fs.info(path, refresh=True)["ContentType"] == "text/html"  # a browser shows it
