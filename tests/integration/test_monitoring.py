"""What is to be seen of a run on a real Ray cluster, by a real Prometheus if there is one."""

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import own_cluster
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from own_cluster import ROOT, OwnCluster
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from scoring import command, driver

from bertray.schema import NOT_UTF8
from bertray.score.metrics import SPLIT_FAILED
from bertray.score.summary import STAGES

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

MONITORING = ROOT / "deploy" / "monitoring"
PROMETHEUS = shutil.which("prometheus")
needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None, reason="prometheus is not installed (Debian's package of that name has it)"
)
PATIENCE_S = 120.0
REPORT_S = 1.0  # each process of Ray reports so often
REPORT_INTERVAL = "RAY_metrics_report_interval_ms"
LOOKS = 10

# An actor whose memory does not do for more than so many tokens at once, and who takes its time for
# one split.
SLOW_AND_TIGHT = """
import time
from pathlib import Path
import torch
from bertray.score import pipeline

class SlowAndTight(pipeline.Classifier):
    def _load(self, settings):
        super()._load(settings)
        backend = self._engine._backend
        gather = backend.gather

        def in_little_memory(encoded, rows):
            if encoded.lengths[rows].sum() > 100:
                raise torch.OutOfMemoryError("out of memory")
            return gather(encoded, rows)

        backend.gather = in_little_memory

    def _classify(self, block, split):
        while split.shard == "waits.parquet" and not Path({go_on!r}).exists():
            time.sleep(0.1)
        return super()._classify(block, split)

pipeline.Classifier = SlowAndTight
"""
NUM_ROWS, NUM_BEFORE_THE_WAIT, NUM_BROKEN = 125, 123, 3


@dataclass(frozen=True)
class Watched:
    """What was to be seen of a run.

    Attributes:
        output: its folder.
        record: its ``_run.json``.
        looks: what the head's agent exported while the run stood still, once in a while.
        ending: what it exported once all rows were in place.
        samples: what it exported once the driver had ended.
        answers: what Prometheus answered to each query of the dashboard while the run stood still;
            None if there is no Prometheus.
        alerts: likewise, the alerts that fired.
    """

    output: Path
    record: dict[str, Any]
    looks: list[list[Sample]]
    ending: list[Sample]
    samples: list[Sample]
    answers: dict[str, list[Any]] | None
    alerts: set[str] | None

    def value(self, name: str, **labels: str) -> float:
        """The sum of a metric's series with these labels, at the end."""
        return self.value_at(self.samples, name, **labels)

    def value_at(self, samples: list[Sample], name: str, **labels: str) -> float:
        """The same at another time."""
        wanted = labels.items() | {("output", str(self.output))}
        found = [s.value for s in samples if s.name == name and wanted <= s.labels.items()]
        assert found, (name, labels)
        return sum(found)


def queries() -> list[str]:
    """All that the dashboard asks for."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def write_lake(root: Path) -> None:
    """Six whole shards, one with two bad rows, one that is broken, one to wait at."""
    root.mkdir()
    for number in range(6):
        rows = [f"good film {number} {'very ' * length}" for length in range(20)]
        pq.write_table(pa.table({"text": rows}), root / f"part-{number}.parquet")
    strings = pa.array([b"good", b"\xff\xfe", b"bad \xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": strings}), root / "not-utf8.parquet")
    whole = root / "broken.parquet"
    table = pa.table({"text": ["good film", "bad film", "a film"]})
    pq.write_table(table, whole, compression="none", write_page_checksum=True)
    content = bytearray(whole.read_bytes())
    content[content.index(b"bad film")] ^= 1
    whole.write_bytes(content)
    pq.write_table(pa.table({"text": ["a", "the"]}), root / "waits.parquet")


@pytest.fixture(scope="module")
def cluster() -> Iterator[OwnCluster]:
    """Its processes report each second."""
    with own_cluster.running(**{REPORT_INTERVAL: f"{1000 * REPORT_S:.0f}"}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def watched(
    cluster: OwnCluster, tmp_path_factory: pytest.TempPathFactory, classifier_folder: Path
) -> Watched:
    root = tmp_path_factory.mktemp("watched")
    write_lake(root / "in")
    words = command(classifier_folder, root / "in", root / "out")
    before = SLOW_AND_TIGHT.format(go_on=str(root / "go-on"))
    looks, answers, alerts = [], None, None
    with (
        scraping(cluster, root) as ask,
        driver(words, cluster.environment, before=before) as run,
    ):
        try:
            samples_of(cluster, num_rows=NUM_BEFORE_THE_WAIT)
            for _ in range(LOOKS):
                time.sleep(REPORT_S)  # nothing is to change: there is nothing to wait for
                looks.append(exported(cluster))
            if ask is not None:
                answers = {
                    query: ask("query", query=filled_in(query))["result"] for query in queries()
                }
                alerts = {
                    alert["labels"]["alertname"]
                    for alert in ask("alerts")["alerts"]
                    if alert["state"] == "firing"
                }
        finally:
            (root / "go-on").touch()
            ending = samples_of(cluster, num_rows=NUM_ROWS)
            said, _ = run.communicate(timeout=PATIENCE_S)
    samples = exported(cluster)
    assert run.returncode == 3, said
    record = json.loads((root / "out" / "_run.json").read_text())
    return Watched(root / "out", record, looks, ending, samples, answers, alerts)


def samples_of(cluster: OwnCluster, *, num_rows: int) -> list[Sample]:
    """What the head's agent exports once so many rows are in it."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        samples = exported(cluster)
        rows = sum(s.value for s in samples if s.name == "ray_bertray_rows_total")
        if rows == num_rows or time.monotonic() > deadline:
            return exported(cluster)  # the last ones may have been in the middle of a report
        time.sleep(0.1)


def exported(cluster: OwnCluster) -> list[Sample]:
    """What the head's agent exports now; nothing before it is there."""
    try:
        with urllib.request.urlopen(cluster.metrics) as page:
            families = text_string_to_metric_families(page.read().decode())
    except OSError:
        return []
    return [sample for family in families for sample in family.samples]


@contextmanager
def scraping(cluster: OwnCluster, root: Path) -> Iterator[Any]:
    """Let a Prometheus with our config look at the cluster each second; gives its API."""
    if PROMETHEUS is None:
        yield None
        return
    config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(MONITORING / name) for name in config["rule_files"]]
    (discovery,) = config["scrape_configs"][0]["file_sd_configs"]
    (file,) = discovery["files"]
    discovery["files"] = [file.replace("/tmp/ray", str(cluster.scratch))]
    discovery["refresh_interval"] = "1s"
    (root / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = own_cluster.free_port()
    process = subprocess.Popen(
        [
            PROMETHEUS,
            f"--config.file={root / 'prometheus.yaml'}",
            f"--storage.tsdb.path={root / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ask(what: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url) as answer:
            return json.load(answer)["data"]

    try:
        yield ask
    finally:
        process.terminate()
        process.wait()


def filled_in(query: str) -> str:
    """A query as Grafana sends it."""
    return query.replace("$output", ".*").replace("$window", "5m")


def test_what_is_exported_after_a_run_is_what_the_run_says_of_itself(watched: Watched) -> None:
    record, stats = watched.record, watched.record["stats"]
    assert watched.value("ray_bertray_rows_total") == record["rows_scored"] == NUM_ROWS
    for name, stat in (
        ("tokens", "num_tokens"),
        ("padded_tokens", "num_padded_tokens"),
        ("batches", "num_batches"),
        ("halvings", "num_new_halvings"),
        ("wait_seconds", "wait_s"),
    ):
        assert watched.value(f"ray_bertray_{name}_total") == pytest.approx(stats[stat]), name
        assert stats[stat] > 0, name
    for stage in STAGES:
        seconds = watched.value("ray_bertray_stage_seconds_total", stage=stage)
        assert seconds == pytest.approx(stats[f"{stage}_s"]), stage
        assert seconds > 0
    assert watched.value("ray_bertray_commit_seconds_count") == 8
    assert watched.value("ray_bertray_commit_seconds_bucket", le="+Inf") == 8
    for name, expected in (
        ("input_rows", NUM_ROWS + NUM_BROKEN),
        ("output_rows", record["rows"]),
        ("actors", record["pool"]["max_actors"]),
    ):
        assert watched.value_at(watched.ending, f"ray_bertray_{name}") == expected, name


def test_rows_without_a_prediction_are_counted_by_reason(watched: Watched) -> None:
    name = "ray_bertray_quarantined_rows_total"
    assert watched.value(name, reason=NOT_UTF8) == 2
    assert watched.value(name, reason=SPLIT_FAILED) == NUM_BROKEN
    assert watched.value(name) == 2 + NUM_BROKEN


def test_a_run_that_stands_still_goes_on_telling_that_splits_are_pending(watched: Watched) -> None:
    """Ray drops a gauge that is not set anew."""

    def splits(samples: list[Sample]) -> dict[str, float]:
        states = ("pending", "done", "quarantined")
        return {
            state: watched.value_at(samples, "ray_bertray_splits", state=state) for state in states
        }

    for look in watched.looks:
        assert splits(look) == {"pending": 1, "done": 7, "quarantined": 1}
    assert splits(watched.ending) == {"pending": 0, "done": 8, "quarantined": 1}


def test_the_last_counts_are_not_lost_with_a_driver_that_ends(
    cluster: OwnCluster, classifier_folder: Path, tmp_path: Path
) -> None:
    """This one would report once a minute, and is gone before."""
    write_lake(tmp_path / "in")
    words = command(classifier_folder, tmp_path / "in", tmp_path / "out")
    start = time.monotonic()
    with driver(words, {**cluster.environment, REPORT_INTERVAL: "60000"}) as run:
        said, _ = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 3, said
    assert time.monotonic() - start < 60
    rows = [
        sample.value
        for sample in exported(cluster)
        if sample.name == "ray_bertray_rows_total"
        and sample.labels["output"] == str(tmp_path / "out")
    ]
    assert rows == [NUM_ROWS]


def test_dashboard_and_alerts_ask_for_metrics_that_are_exported(watched: Watched) -> None:
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    asked = [*queries(), *(rule["expr"] for group in rules for rule in group["rules"])]
    named = set(re.findall(r"\bray_\w+", " ".join(asked)))
    assert len(named) > 10
    assert not named - {sample.name for sample in watched.ending}


def test_the_dashboard_tells_where_to_look_to_who_has_the_token(cluster: OwnCluster) -> None:
    url = f"{cluster.dashboard}/api/prometheus/sd"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url)
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {own_cluster.TOKEN}"})
    with urllib.request.urlopen(request) as answer:
        (group,) = json.load(answer)
    assert urllib.parse.urlparse(cluster.metrics).netloc in group["targets"]


@needs_prometheus
def test_each_query_of_the_dashboard_finds_something_in_a_real_prometheus(
    watched: Watched,
) -> None:
    assert watched.answers
    assert not [query for query, found in watched.answers.items() if not found]


@needs_prometheus
def test_bad_rows_and_little_memory_raise_their_alerts_in_a_real_prometheus(
    watched: Watched,
) -> None:
    assert watched.alerts == {"BertrayRowsQuarantined", "BertrayOutOfMemory"}
