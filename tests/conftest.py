"""Small real parts for all tests: random-weight models, Parquet shards, no network."""

import json
import os
import resource
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import seaweed
from fault_proxy import FaultProxy
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
settings.register_profile("bertray", deadline=None)  # machines that test are shared and slow
settings.load_profile("bertray")

WORDS = "good bad film plot the a is was very not great awful story actor ##s ##ly , . !".split()
S3_OPTIONS = {"patience_s": 5}  # much less than users get: tests wait for the end of it
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=5, help="of test_chaos.py, on local disk")
    parser.addoption("--kuberay-crds", type=Path, help="of test_kuberay.py: a folder of CRDs")
    parser.addoption("--kills-s3", type=int, default=0, help="likewise, on S3; 0: not there")
    parser.addoption("--lose-hosts", action="store_true", help="of test_hosts.py: the slow ones")
    parser.addoption("--mlflow", help="of test_mlflow_server.py: the command of a full MLflow")
    parser.addoption("--mpnet", help="folder of MPNet-base, for test_families.py")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Converted and fetched models of the tests stay with the tests."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _memory_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test leaves of a limit must not make others fail; the summary of warnings names it."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    yield
    if resource.getrlimit(resource.RLIMIT_DATA) != before:
        resource.setrlimit(resource.RLIMIT_DATA, before)
        warnings.warn(f"{request.node.name} left a limit on memory behind", stacklevel=1)


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that plain transformers saved: a random two-layer BERT with three labels."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("classifier")
    vocabulary = folder / "vocab.txt"
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*SPECIAL, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary.write_text("\n".join(pieces) + "\n")
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        id2label={0: "bad", 1: "so-so", 2: "good"},
        label2id={"bad": 0, "so-so": 1, "good": 2},
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizerFast(vocab=str(vocabulary), model_max_length=64).save_pretrained(folder)
    return folder


@pytest.fixture
def other_classifier(classifier_folder: Path, tmp_path: Path) -> Path:
    """A model whose files differ from those of ``classifier_folder``."""
    folder = tmp_path / "other-classifier"
    shutil.copytree(classifier_folder, folder)
    config = folder / "config.json"
    config.write_text(config.read_text() + "\n")
    return folder


@pytest.fixture(scope="session")
def base_without_dropout(tmp_path_factory: pytest.TempPathFactory, classifier_folder: Path) -> Path:
    """The same, to be trained with the same losses however its rows are shared out."""
    base = tmp_path_factory.mktemp("without_dropout") / "base"
    shutil.copytree(classifier_folder, base)
    settings = json.loads((base / "config.json").read_text())
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (base / "config.json").write_text(json.dumps({**settings, **without}))
    return base


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store that MLflow has made, which takes it seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").get_experiment_by_name("any")
    return path


@pytest.fixture
def write_shards(tmp_path: Path) -> Callable[..., Path]:
    """Write tables as ``NAME.parquet`` below a folder; gives the folder."""

    def write(shards: dict[str, pa.Table], *, folder: str = "in", **options: object) -> Path:
        root = tmp_path / folder
        for name, table in shards.items():
            path = root / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path, **options)
        return root

    return write


@pytest.fixture(scope="session")
def fault_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    """The only S3 that tests and their workers know, by their environment; see `s3`."""
    proxy = FaultProxy()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
            patch.delenv(name)
        nowhere = str(tmp_path_factory.mktemp("aws") / "none")
        for name, value in {
            "AWS_ACCESS_KEY_ID": "key-of-the-tests",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
            "AWS_CONFIG_FILE": nowhere,
            "AWS_SHARED_CREDENTIALS_FILE": nowhere,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": proxy.url,
            "FSSPEC_S3": json.dumps(S3_OPTIONS),
        }.items():
            patch.setenv(name, value)
        patch.setitem(fsspec.config.conf, "s3", S3_OPTIONS)
        yield proxy
    proxy.close()


@pytest.fixture(scope="session")
def s3_server(
    tmp_path_factory: pytest.TempPathFactory, fault_proxy: FaultProxy
) -> Iterator[FaultProxy]:
    """A real server behind the proxy, with a bucket ``lake``."""
    from bertray import storage

    with seaweed.running(tmp_path_factory.mktemp("seaweed")) as port:
        fault_proxy.upstream = ("127.0.0.1", port)
        storage.resolve("s3://lake")[0].mkdir("lake")
        yield fault_proxy


@pytest.fixture
def s3(s3_server: FaultProxy) -> Iterator[str]:
    """A place of a test's own on S3, with a name that is not plain."""
    s3_server.heal()
    yield f"s3://lake/place + {uuid.uuid4().hex} %23#é"
    s3_server.heal()


@pytest.fixture(scope="session")
def ray_cluster(fault_proxy: FaultProxy) -> Iterator[None]:
    """One small local cluster for the tests that need one."""
    import ray

    # Where its workers see this, Ray raises on columns that it else sends by Arrow IPC.
    under_test = os.environ.pop("PYTEST_CURRENT_TEST")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    os.environ["PYTEST_CURRENT_TEST"] = under_test
    yield
    ray.shutdown()
