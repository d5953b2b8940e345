"""Which errors speak of a place that cannot be used now, and how to say so in one line."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bertray.errors import BertrayError, OutputError, StorageError

ERRNOS = {
    errno.EBUSY,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EDQUOT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EIO,
    errno.EMFILE,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENODEV,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.ENOTCONN,
    errno.ENXIO,
    errno.EPIPE,
    errno.EROFS,
    errno.ESHUTDOWN,
    errno.ESTALE,
    errno.ETIMEDOUT,
    getattr(errno, "EREMOTEIO", errno.EIO),  # what s3fs makes of an answer of 500
}
# By name, for each belongs to a package that need not be installed, nor imported to ask.
KINDS = {
    "aiohttp.client_exceptions.ClientError",
    "azure.core.exceptions.ServiceRequestError",
    "azure.core.exceptions.ServiceResponseError",
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.CredentialRetrievalError",
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.NoAuthTokenError",
    "botocore.exceptions.NoCredentialsError",
    "botocore.exceptions.PartialCredentialsError",
    "botocore.exceptions.ProfileNotFound",
    "botocore.exceptions.TokenRetrievalError",
    "botocore.parsers.ResponseParserError",
    "google.auth.exceptions.GoogleAuthError",
    "urllib3.exceptions.HTTPError",
}
# What S3 answers, with 400 or 403, to credentials that are good for nothing.
BAD_CREDENTIALS = {
    "AccountProblem",
    "AllAccessDisabled",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "InvalidToken",
    "NotSignedUp",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "UnrecognizedClientException",
}
TOO_BUSY = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "NoSuchBucket"}

SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
SECRETS = (
    # A secret key may hold slashes; what is a port and a path elsewhere is none on S3.
    (re.compile(r"(s3a?://)(?!arn:)[^/@\s:]+:[^@\s]+@"), r"\1***@"),
    (re.compile(r"(\w+://)(?!arn:)[^/@\s:]+:(?!\d{1,5}/)[^@\s]+@"), r"\1***@"),
    (
        re.compile(
            r"(?i)([?&;](?:sig|[\w-]*(?:token|signature|credential|key|secret|password))=)[^&\s'\"]+"
        ),
        r"\1***",
    ),
)


class PlaceError(OSError):
    """What our own filesystems raise if a place cannot be used now, whatever the file."""


class UnreachableError(StorageError, OSError):
    """The same for the callers of `bertray.storage`: it names the place."""


class UnwritableError(OutputError, OSError):
    """A place that takes no file, or does not let go of one: read-only, full, not ours."""


OURS = (UnreachableError, UnwritableError)


def is_outage(error: BaseException) -> bool:
    """Whether an error speaks of the place, and not of the content of one file.

    Connections, time-outs, servers that cannot, credentials, permissions, full or broken disks: to
    try again later, or to mend something outside, helps. A file that is gone or damaged is none.
    """
    return any(_is_outage(link) for link in _chain(error))


def reason_of(error: BaseException) -> str:
    """One line that says what is wrong, with the server's code if it gave one, and no secrets."""
    links = list(_chain(error))
    for link in links:
        if type(link).__name__ == "NoCredentialsError":  # botocore's
            return "no credentials; set AWS_PROFILE or give the machine a role"
        code, message = _answer(link)
        if code:
            return _clean(message if code in message else f"{message} ({code})")
    last = next((link for link in links if not isinstance(link, OURS)), links[-1])
    text = last.strerror if isinstance(last, OSError) and last.strerror else str(last)
    if not text.strip():
        text = type(last).__name__
    if isinstance(last, OSError) and last.errno and os.strerror(last.errno) not in text:
        text = f"{os.strerror(last.errno)}: {text}"
    return _clean(text)


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn what a client raises when a place cannot be used into an `UnreachableError`.

    A PermissionError stays one: it may be of one file alone. So does each error that is no outage.
    """
    try:
        yield
    except (PermissionError, StorageError):
        raise
    except Exception as error:  # each cloud's client has errors of its own
        if is_outage(error):
            raise _unreachable(uri, error) from error
        raise


@contextmanager
def readable(uri: str) -> Iterator[None]:
    """`reaching` for what a run cannot do without: that it may not be read is an outage too."""
    try:
        with reaching(uri):
            yield
    except PermissionError as error:
        raise _unreachable(uri, error) from error


@contextmanager
def writing(uri: str) -> Iterator[None]:
    """Turn what a client raises when it may not or cannot write into an `UnwritableError`."""
    try:
        yield
    except BertrayError:
        raise
    except Exception as error:  # each cloud's client has errors of its own
        if not isinstance(error, OSError) and not _status(error):
            raise
        raise UnwritableError(
            f"{_clean(uri)}: cannot be written to: {reason_of(error)}; mend that and run again"
        ) from error


def _unreachable(uri: str, error: Exception) -> UnreachableError:
    return UnreachableError(
        f"{_clean(uri)}: cannot be reached: {reason_of(error)}; "
        "what is done is safe: mend that and run again"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _is_outage(error: BaseException) -> bool:
    if isinstance(
        error, PlaceError | UnreachableError | ConnectionError | TimeoutError | PermissionError
    ):
        return True
    if isinstance(error, OSError) and error.errno in ERRNOS:
        return True
    code, _ = _answer(error)
    if code in BAD_CREDENTIALS | TOO_BUSY or _status(error) in (401, 408, 429):
        return True
    return _status(error) >= 500 or not KINDS.isdisjoint(_names(error))


def _names(error: BaseException) -> set[str]:
    return {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}


def _answer(error: BaseException) -> tuple[str, str]:
    """Code and message that S3 answered with; empty if this is no answer of S3."""
    response: Any = getattr(error, "response", None)
    if not isinstance(response, dict):
        return "", ""
    found = response.get("Error", {})
    return str(found.get("Code", "")), str(found.get("Message", ""))


def _status(error: BaseException) -> int:
    """The HTTP status of an answer, or 0."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if not {"gcsfs.retry.HttpError", "azure.core.exceptions.HttpResponseError"} & _names(error):
        return 0
    status: Any = getattr(error, "status_code", None) or getattr(error, "code", None)
    return int(status) if str(status).isdigit() else 0


def without_secrets(text: str) -> str:
    """``text`` without the secrets of the environment, and those that URLs carry."""
    for name in SECRET_VARIABLES:
        secret = os.environ.get(name)
        if secret:
            text = text.replace(secret, "***")
    for pattern, stand_in in SECRETS:
        text = pattern.sub(stand_in, text)
    return text


def _clean(text: str) -> str:
    """One line without secrets."""
    return without_secrets(" ".join(text.split()))
