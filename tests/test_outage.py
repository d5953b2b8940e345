import errno
import pickle

import aiohttp
import botocore.exceptions
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError

from bertray import storage
from bertray.errors import UserError
from bertray.storage.outage import PlaceError, reaching


def answer(status: int, code: str, message: str = "told") -> ClientError:
    response = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, "PutObject")


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


OUTAGES = [
    OSError(errno.ENOSPC, "x"),
    OSError(errno.EDQUOT, "x"),
    OSError(errno.EIO, "x"),
    OSError(errno.EROFS, "x"),
    OSError(errno.ESTALE, "x"),
    OSError(errno.ETIMEDOUT, "x"),
    ConnectionRefusedError(),
    ConnectionResetError(),
    TimeoutError(),
    PermissionError(errno.EACCES, "x"),
    aiohttp.ClientPayloadError("x"),
    botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"),
    botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"),
    botocore.exceptions.NoCredentialsError(),
    botocore.exceptions.CredentialRetrievalError(provider="x", error_msg="y"),
    botocore.exceptions.ProfileNotFound(profile="x"),
    answer(503, "SlowDown"),
    answer(500, "InternalError"),
    answer(403, "ExpiredToken"),
    answer(400, "ExpiredToken"),
    caused(FileNotFoundError("x"), answer(404, "NoSuchBucket")),
    caused(OSError(errno.EINVAL, "x"), answer(400, "InvalidToken")),
    PlaceError("x"),
]
NONE = [
    FileNotFoundError(errno.ENOENT, "x"),
    IsADirectoryError(errno.EISDIR, "x"),
    OSError("Couldn't deserialize thrift"),
    pa.ArrowInvalid("Parquet magic bytes not found"),
    ValueError("x"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
    answer(404, "NoSuchKey"),
    caused(OSError(errno.EINVAL, "x"), answer(412, "PreconditionFailed")),
    answer(416, "InvalidRange"),
]


@pytest.mark.parametrize("error", OUTAGES, ids=repr)
def test_what_speaks_of_the_place_is_an_outage(error: Exception) -> None:
    assert storage.is_outage(error)


def test_without_credentials_it_is_said_where_they_come_from() -> None:
    error = botocore.exceptions.NoCredentialsError()
    assert storage.reason_of(error) == (
        "no credentials; set AWS_PROFILE or give the machine a role"
    )


@pytest.mark.parametrize("error", NONE, ids=repr)
def test_what_speaks_of_one_file_is_none(error: Exception) -> None:
    assert not storage.is_outage(error)
    with pytest.raises(type(error)), reaching("s3://lake/a"):
        raise error


def test_a_damaged_file_is_no_outage() -> None:
    with pytest.raises((OSError, pa.ArrowException)) as caught:
        pq.read_metadata(pa.BufferReader(b"PAR1" + b"x" * 100 + b"\x10\x00\x00\x00PAR1"))
    assert not storage.is_outage(caught.value)


def test_an_outage_names_the_place_and_the_reason_and_survives_the_way_to_the_driver() -> None:
    with pytest.raises(storage.UnreachableError) as caught, reaching("s3://lake/a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(copy, UserError)
    assert isinstance(copy, OSError)
    assert str(copy) == (
        "s3://lake/a: cannot be reached: No space left on device; "
        "what is done is safe: mend that and run again"
    )
    with pytest.raises(PermissionError), reaching("/a"):
        raise PermissionError(errno.EACCES, "x")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EIO, "read\nfailed"), "Input/output error: read failed"),
        (ConnectionResetError(), "ConnectionResetError"),
        (
            answer(403, "ExpiredToken", "The token has expired."),
            "The token has expired. (ExpiredToken)",
        ),
        (caused(OSError(errno.EBUSY, "Slow"), answer(503, "SlowDown", "Slow")), "Slow (SlowDown)"),
        (OSError("bad magic"), "bad magic"),
        (OSError("at https://me:hush@x/y"), "at https://***@x/y"),
        (
            OSError("at https://x/y?sig=hush&X-Amz-Security-Token=hush&part=1"),
            "at https://x/y?sig=***&X-Amz-Security-Token=***&part=1",
        ),
        (OSError("sent env-hush"), "sent ***"),
    ],
    ids=repr,
)
def test_a_reason_is_one_line_without_secrets(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "env-hush")
    assert storage.reason_of(error) == reason
