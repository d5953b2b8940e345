"""What storage makes of a network and a server that fail, on a real S3 server behind a proxy."""

import os
import re
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import fsspec.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_proxy import FaultProxy

from bertray import storage
from bertray.errors import StorageError
from bertray.storage import s3 as bertray_s3

PASSING = {
    "500": {"kind": "answer", "status": 500, "code": "InternalError"},
    "503": {"kind": "answer", "status": 503, "code": "ServiceUnavailable"},
    "slow down": {"kind": "answer", "status": 503, "code": "SlowDown"},
    "request timeout": {"kind": "answer", "status": 400, "code": "RequestTimeout"},
    "reset": {"kind": "reset"},
    "cut": {"kind": "cut"},
    "lost reply": {"kind": "lose"},
    "cut reply": {"kind": "cut-reply"},
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of patience, for what never gets better."""
    monkeypatch.setitem(fsspec.config.conf, "s3", {"patience_s": 1.0})


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Content that goes in two parts."""
    monkeypatch.setattr(bertray_s3, "PART_BYTES", 5 * 2**20)
    return os.urandom(6 * 2**20)


def unfinished(uri: str) -> list[str]:
    fs, path = storage.resolve(uri)
    uploads = fs.call_s3("list_multipart_uploads", Bucket="lake", Prefix=path.partition("/")[2])
    return [upload["Key"] for upload in uploads.get("Uploads", [])]


@pytest.mark.parametrize("fault", PASSING.values(), ids=list(PASSING))
def test_what_fails_a_few_times_is_done_in_the_end(
    s3: str, s3_server: FaultProxy, fault: dict[str, object]
) -> None:
    uri = storage.join(s3, "file")
    methods = ["PUT", "GET", "POST", "DELETE", "HEAD"]
    if fault.get("status") == 400:
        methods.remove("HEAD")  # its answer has no body that could tell this 400 from others
    if fault["kind"] == "cut-reply":
        methods = ["GET", "POST"]  # those with a body
    for method in methods:
        s3_server.inject(**{**fault, "count": 2, "method": method})
    assert storage.put_bytes(uri, b"one")
    old = storage.version_of(uri)
    assert storage.get_bytes(uri) == b"one"
    s3_server.inject(**{**fault, "count": 1, "method": "PUT"})
    assert storage.put_bytes(uri, b"another", replaces=old)
    assert storage.list_files(s3, suffix="", key="k")[1][0].size_bytes == len("another")
    storage.remove(uri)
    assert not storage.exists(uri)
    assert storage.put_bytes(uri, b"again")
    storage.remove(s3)
    assert storage.is_empty(s3)
    assert s3_server.hits == 2 * len(methods) + 1


def test_a_body_that_is_cut_off_is_read_to_its_end(
    s3: str, s3_server: FaultProxy, tmp_path: Path
) -> None:
    uri = storage.join(s3, "in/a.parquet")
    table = pa.table({"text": [os.urandom(20).hex() for _ in range(5000)]})
    with storage.staging(uri) as staged:
        pq.write_table(table, staged)
        storage.publish(staged, uri)
    s3_server.inject("cut-reply", method="GET", path="a.parquet", count=2)
    with storage.open_input(uri) as file:
        assert pq.read_table(file).equals(table)
    s3_server.inject("cut-reply", method="GET", path="a.parquet", count=2)
    storage.download(storage.join(s3, "in"), tmp_path)
    assert pq.read_table(tmp_path / "a.parquet").equals(table)
    assert s3_server.hits == 4


def test_a_server_that_says_nothing_is_asked_again(
    s3: str, s3_server: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"patience_s": 30, "config_kwargs": {"read_timeout": 1}}
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    for method in ("PUT", "GET"):
        s3_server.inject("hang", method=method)
    assert storage.put_bytes(storage.join(s3, "file"), b"one")
    assert storage.get_bytes(storage.join(s3, "file")) == b"one"
    assert s3_server.hits == 2


def test_a_put_whose_replies_all_got_lost_is_known_to_be_there(
    s3: str, s3_server: FaultProxy, impatient: None
) -> None:
    uri = storage.join(s3, "file")
    s3_server.inject("lose", method="PUT", count=None)
    assert storage.put_bytes(uri, b"one")
    assert storage.put_bytes(uri, b"two", replaces=storage.version_of(uri))
    assert storage.get_bytes(uri) == b"two"
    assert not storage.put_bytes(uri, b"three")


def test_who_was_replaced_while_the_reply_got_lost_is_told_so(
    s3: str, s3_server: FaultProxy
) -> None:
    uri = storage.join(s3, "file")

    def replace() -> None:
        storage.put_bytes(uri, b"theirs", overwrite=True)

    replaced = threading.Thread(target=replace)

    def meanwhile() -> None:
        replaced.start()
        replaced.join()

    s3_server.inject("lose", method="PUT", then=meanwhile)
    assert not storage.put_bytes(uri, b"mine")
    assert storage.get_bytes(uri) == b"theirs"


def test_a_put_of_unknown_outcome_raises_and_undoes_nothing(
    s3: str, s3_server: FaultProxy, impatient: None
) -> None:
    uri = storage.join(s3, "file")
    s3_server.inject("lose", method="PUT", count=1)
    s3_server.inject("reset", count=None)
    with pytest.raises(storage.UnreachableError, match="cannot be reached"):
        storage.put_bytes(uri, b"one")
    assert "DELETE" not in {method for method, _ in s3_server.requests}
    s3_server.heal()
    assert storage.get_bytes(uri) == b"one"


def test_parts_and_their_completion_survive_faults_and_lost_replies(
    s3: str, s3_server: FaultProxy, in_parts: bytes
) -> None:
    uri = storage.join(s3, "file")
    s3_server.inject("reset", method="POST", path="uploads")
    s3_server.inject("cut", method="PUT", path="partNumber=1")
    s3_server.inject("answer", method="PUT", path="partNumber=2")
    s3_server.inject("lose", method="POST", path="uploadId")
    assert storage.put_bytes(uri, in_parts)
    assert s3_server.hits == 4
    assert storage.get_bytes(uri) == in_parts


def test_an_upload_that_is_refused_in_the_middle_publishes_nothing(
    s3: str, s3_server: FaultProxy, in_parts: bytes
) -> None:
    uri = storage.join(s3, "file")
    s3_server.inject("answer", method="PUT", path="partNumber=2", status=403, code="AccessDenied")
    with pytest.raises(storage.UnwritableError, match=r"cannot be written to.*AccessDenied"):
        storage.put_bytes(uri, in_parts)
    assert not storage.exists(uri)
    assert unfinished(s3) == []


def test_an_upload_that_dies_in_the_middle_publishes_nothing_and_is_swept(
    s3: str, s3_server: FaultProxy, in_parts: bytes, impatient: None
) -> None:
    uri = storage.join(s3, "file")
    s3_server.inject("cut", method="PUT", path="partNumber=2", count=None)
    with pytest.raises(storage.UnreachableError):
        storage.put_bytes(uri, in_parts)
    assert not storage.exists(uri)
    assert len(unfinished(s3)) == 1
    storage.sweep(s3, older_than_s=-1)
    assert unfinished(s3) == []


def test_a_conflict_with_another_writer_is_tried_again(s3: str, s3_server: FaultProxy) -> None:
    uri = storage.join(s3, "file")
    conflict = {"status": 409, "code": "ConditionalRequestConflict"}
    s3_server.inject("answer", method="PUT", count=2, **conflict)
    assert storage.put_bytes(uri, b"one")
    s3_server.inject("answer", method="PUT", **conflict)
    assert not storage.put_bytes(uri, b"two")


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
@pytest.mark.parametrize(
    "do",
    [
        storage.exists,
        storage.version_of,
        storage.get_bytes,
        storage.remove,
        lambda uri: storage.put_bytes(uri, b"x"),
        lambda uri: storage.list_files(uri, suffix="", key="input.path"),
        lambda uri: storage.download(uri, Path("/nowhere")),
    ],
    ids="exists version_of get remove put list download".split(),
)
def test_credentials_that_are_no_good_stop_at_once_and_are_named(
    s3: str, s3_server: FaultProxy, do: Callable[[str], object], code: str
) -> None:
    s3_server.inject("answer", count=None, status=403, code=code)
    with pytest.raises(StorageError, match=rf"{code}") as caught:
        do(storage.join(s3, "file"))
    assert len(s3_server.requests) <= 2
    assert s3 in str(caught.value)


def test_one_file_that_may_not_be_read_is_no_outage(s3: str, s3_server: FaultProxy) -> None:
    uri = storage.join(s3, "file")
    storage.put_bytes(uri, b"one")
    s3_server.inject("answer", count=None, path="/file", status=403, code="AccessDenied")
    with pytest.raises(PermissionError) as caught, storage.open_input(uri):
        pass
    assert not isinstance(caught.value, StorageError)
    assert "AccessDenied" in storage.reason_of(caught.value)


def test_a_bucket_that_is_not_there_is_named(s3: str) -> None:
    for do in (storage.exists, storage.get_bytes, storage.is_empty, storage.remove):
        with pytest.raises(storage.UnreachableError, match=r"s3://nowhere/x: .*NoSuchBucket"):
            do("s3://nowhere/x")


def test_what_cannot_be_removed_is_named(s3: str, s3_server: FaultProxy) -> None:
    storage.put_bytes(storage.join(s3, "file"), b"one")
    s3_server.inject("answer", count=None, method="DELETE", status=403, code="AccessDenied")
    with pytest.raises(storage.UnwritableError, match=r"file: cannot be written to"):
        storage.remove(storage.join(s3, "file"))


@pytest.mark.parametrize("kind", ["reset", "answer", "refused"])
def test_a_dead_server_ends_in_bounded_time_in_an_error_without_secrets(
    s3: str, s3_server: FaultProxy, kind: str, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-the-tests")
    if kind == "refused":
        monkeypatch.setitem(
            fsspec.config.conf, "s3", {"patience_s": 1, "endpoint_url": "http://127.0.0.1:9"}
        )
    else:
        s3_server.inject(kind, count=None)
    uri = storage.join(s3, "file")
    for do in (
        storage.exists,
        storage.get_bytes,
        storage.version_of,
        storage.is_empty,
        storage.remove,
        lambda uri: storage.put_bytes(uri, b"x"),
        lambda uri: storage.list_files(uri, suffix="", key="input.path"),
    ):
        start = time.monotonic()
        with pytest.raises(StorageError) as caught:
            do(uri)
        assert time.monotonic() - start < 10
        message = str(caught.value)
        assert "\n" not in message
        assert re.search(rf"{re.escape(s3)}.*: cannot be (reached|listed): .+", message), message
        assert storage.is_outage(caught.value)
        told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"):
            assert os.environ[name] not in told


def test_sweeping_a_dead_server_is_said_and_stops_nothing(
    s3: str, s3_server: FaultProxy, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    s3_server.inject("reset", count=None)
    storage.sweep(s3, older_than_s=600)
    assert "cannot be swept" in caplog.text
