"""S3 with patience, and files that appear there under a condition."""

import asyncio
import logging
import math
import mimetypes
import random
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from fsspec.asyn import sync, sync_wrapper
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

from bertray.storage.outage import BAD_CREDENTIALS, PlaceError, is_outage, reason_of

logger = logging.getLogger(__name__)

PATIENCE_S = 90.0  # how long one request is tried again
LONGEST_WAIT_S = 10.0
SAID_AT = 5  # failures, which took some seconds
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 30
SLOWEST_BYTES_S = 512 * 1024  # a body that goes out slower is taken for stuck
CONNECTIONS = 32
BODY_READS = 12  # tries to read a body that is cut off again and again; about a minute
PART_BYTES = 32 * 2**20  # of a multipart upload; a smaller file is one PUT
MAX_PARTS = 10_000
PARTS_AT_ONCE = 4
CONFLICTS = 8  # tries to put one file while others are about to put theirs
DELETES_AT_ONCE = 1000

# Of the answers with 4xx, those that a second try may turn.
PASSING = {
    "BadDigest",
    "IncompleteBody",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentSHA256Mismatch",
}
WRITER = "bertray-put"  # user metadata that tells one put from another


class PatientS3(S3FileSystem):  # type: ignore[misc]
    """s3fs that bears a minute of failing requests and then says what failed.

    s3fs and botocore each try again by counts, one inside the other: 4 times for a busy server,
    125 times and half an hour for a silent one, and not at all for some errors. Here botocore tries
    once and each request has one span of time.

    Args:
        patience_s: that span; ``FSSPEC_S3='{"patience_s": 20}'`` sets it, as any other argument.
    """

    retries = BODY_READS

    def __init__(
        self,
        *args: Any,
        patience_s: float = PATIENCE_S,
        config_kwargs: dict[str, Any] | None = None,
        max_concurrency: int = 1,  # a download that is cut off goes on only if it is one stream
        **kwargs: Any,
    ) -> None:
        defaults = {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "max_pool_connections": CONNECTIONS,
            "retries": {"total_max_attempts": 1},
        }
        super().__init__(
            *args,
            config_kwargs=defaults | (config_kwargs or {}),
            max_concurrency=max_concurrency,
            **kwargs,
        )
        self.patience_s = float(patience_s)
        self._answer_s = float(self.config_kwargs["read_timeout"])

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        """One request; s3fs sends all of its own through here.

        Raises:
            PlaceError: all tries failed, or the credentials are no good.
            OSError: the server refused, in s3fs's terms.
        """
        return await self._try(method, akwarglist, kwargs, patience_s=self.patience_s)

    call_s3 = sync_wrapper(_call_s3)

    async def _try(
        self,
        method: str,
        akwarglist: Sequence[Any],
        kwargs: dict[str, Any],
        *,
        patience_s: float,
    ) -> Any:
        # aiohttp times a request from its last byte on, so a server that takes no more bytes, or
        # never says to go on, would hold it for ever.
        body = kwargs.get("Body")
        limit_s = self._answer_s + len(body) / SLOWEST_BYTES_S if body is not None else None
        give_up = time.monotonic() + patience_s
        attempt = 0
        while True:
            try:
                await self.set_session()
                call = getattr(await self.get_s3(kwargs.get("Bucket")), method)
                arguments = self._get_s3_method_kwargs(call, *akwarglist, **kwargs)
                async with asyncio.timeout(limit_s):
                    return await call(**arguments)
            except Exception as error:  # botocore, aiohttp and ssl each have errors of their own
                wait = random.uniform(0, min(LONGEST_WAIT_S, 0.2 * 2**attempt))
                if not is_passing(error) or time.monotonic() + wait > give_up:
                    told = await self._told(error, method, kwargs)
                    if told is error:
                        raise
                    raise told  # noqa: B904  # it has its cause
                attempt += 1
                if attempt == SAID_AT:  # let a person know why nothing happens
                    logger.warning("S3 fails, trying on: %s", reason_of(error))
            await asyncio.sleep(wait)

    async def _told(self, error: Exception, method: str, kwargs: dict[str, Any]) -> Exception:
        """The error that s3fs's callers know, caused by that which says the reason."""
        status, code = answer_of(error)
        if method == "head_object" and status in (400, 403) and code == str(status):
            # The answer to a HEAD has no body that could say why.
            try:
                out = await self._call_s3(
                    "get_object", Bucket=kwargs["Bucket"], Key=kwargs["Key"], Range="bytes=0-0"
                )
                out["Body"].close()
            except (PlaceError, PermissionError) as why:
                return why
            except OSError:
                pass
        if code in BAD_CREDENTIALS or status >= 500 or (status == 0 and is_outage(error)):
            told = PlaceError(reason_of(error))
            told.__cause__ = error
            return told
        return translate_boto_error(error)  # type: ignore[no-any-return]

    def publish(self, staged: Path, path: str, **condition: str) -> bool:
        """Put a file at ``path`` if a condition holds when its last byte has come.

        Args:
            staged: the file.
            path: bucket and key.
            condition: ``IfNoneMatch="*"`` or ``IfMatch=ETAG``; none to put it over anything.

        Returns:
            Whether this file is there now. An answer that got lost does not matter: a put carries
            a token, and who finds the condition broken looks whose token is there.
        """
        try:
            return bool(sync(self.loop, self._publish, staged, path, condition))
        finally:
            self.invalidate_cache(path)

    async def _publish(self, staged: Path, path: str, condition: dict[str, str]) -> bool:
        bucket, key, _ = self.split_path(path)
        target = {"Bucket": bucket, "Key": key}
        token = uuid.uuid4().hex
        for attempt in range(CONFLICTS):
            try:
                await self._upload(staged, target, token, condition)
                return True
            except OSError as error:
                status, _ = answer_of(error)
                if 0 < status < 500 and status not in (404, 409, 412):
                    raise
                there = await self._look(target, error)
                if there.get("Metadata", {}).get(WRITER) == token:
                    return True
                if _is_broken(condition, there.get("ETag")):  # for good
                    return False
                if status not in (409, 412) or attempt + 1 == CONFLICTS:
                    raise
            await asyncio.sleep(random.uniform(0, min(LONGEST_WAIT_S, 0.1 * 2**attempt)))
        raise AssertionError  # the last try has returned or raised

    async def _look(self, target: dict[str, str], error: OSError) -> dict[str, Any]:
        """What stands where a put failed, as far as we were told; empty if nothing does."""
        patience_s = 0.0 if isinstance(error, PlaceError) else self.patience_s
        try:
            found = await self._try("head_object", (), dict(target), patience_s=patience_s)
        except FileNotFoundError:
            return {}
        except PlaceError as unknown:
            raise (error if isinstance(error, PlaceError) else unknown) from error.__cause__
        return dict(found)

    async def _upload(
        self, staged: Path, target: dict[str, str], token: str, condition: dict[str, str]
    ) -> None:
        kind, _ = mimetypes.guess_type(target["Key"])
        told: dict[str, Any] = {"Metadata": {WRITER: token}}
        if kind is not None:  # else a browser would not show a page, but save it
            told["ContentType"] = kind
        size = staged.stat().st_size
        if size <= PART_BYTES:
            body = staged.read_bytes()
            await self._call_s3("put_object", **target, Body=body, **told, **condition)
            return
        started = await self._call_s3("create_multipart_upload", **target, **told)
        upload = {**target, "UploadId": started["UploadId"]}
        try:
            parts = await self._upload_parts(staged, upload, size)
            await self._call_s3(
                "complete_multipart_upload",
                **upload,
                MultipartUpload={"Parts": parts},
                **condition,
            )
        except PlaceError:  # then it cannot be aborted either; `sweep` will
            raise
        except BaseException:
            with suppress(OSError):
                await self._call_s3("abort_multipart_upload", **upload)
            raise

    async def _upload_parts(
        self, staged: Path, upload: dict[str, str], size: int
    ) -> list[dict[str, Any]]:
        step = max(PART_BYTES, math.ceil(size / MAX_PARTS))
        parts: list[dict[str, Any]] = []

        async def send(number: int, body: bytes) -> dict[str, Any]:
            out = await self._call_s3("upload_part", **upload, PartNumber=number, Body=body)
            return {"PartNumber": number, "ETag": out["ETag"]}

        with staged.open("rb") as file:
            while bodies := [body for _ in range(PARTS_AT_ONCE) if (body := file.read(step))]:
                sent = await asyncio.gather(
                    *(send(number, body) for number, body in enumerate(bodies, len(parts) + 1)),
                    return_exceptions=True,
                )
                for result in sent:
                    if isinstance(result, BaseException):
                        raise result
                    parts.append(result)
        return parts

    def remove_all(self, paths: Sequence[str]) -> None:
        """Delete objects of one bucket; s3fs's own way passes over those that it may not delete.

        Raises:
            OSError: some are still there.
        """
        for start in range(0, len(paths), DELETES_AT_ONCE):
            sync(self.loop, self._remove, paths[start : start + DELETES_AT_ONCE])
        self.invalidate_cache()

    async def _remove(self, paths: Sequence[str]) -> None:
        names = [self.split_path(path) for path in paths]
        objects = [{"Key": key} for _, key, _ in names]
        out = await self._call_s3(
            "delete_objects", Bucket=names[0][0], Delete={"Objects": objects, "Quiet": True}
        )
        for failed in out.get("Errors", []):
            kind = PermissionError if failed["Code"] == "AccessDenied" else OSError
            raise kind(f"{failed['Key']} cannot be removed: {failed['Message']}")

    def sweep(self, path: str, *, older_than_s: float) -> None:
        """Abort multipart uploads below a prefix that were begun that long ago."""
        sync(self.loop, self._sweep, path, older_than_s)

    async def _sweep(self, path: str, older_than_s: float) -> None:
        bucket, key, _ = self.split_path(path)
        where = {"Bucket": bucket, "Prefix": f"{key.rstrip('/')}/" if key else ""}
        while True:
            page = await self._call_s3("list_multipart_uploads", **where)
            # The server's clock, for it set the other time too.
            now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
            for upload in page.get("Uploads", []):
                if now - upload["Initiated"] > timedelta(seconds=older_than_s):
                    with suppress(FileNotFoundError):  # completed or aborted since
                        await self._call_s3(
                            "abort_multipart_upload",
                            Bucket=bucket,
                            Key=upload["Key"],
                            UploadId=upload["UploadId"],
                        )
            if not page.get("IsTruncated"):
                return
            where |= {
                "KeyMarker": page["NextKeyMarker"],
                "UploadIdMarker": page["NextUploadIdMarker"],
            }


def _is_broken(condition: dict[str, str], etag: str | None) -> bool:
    """Whether a put under a condition cannot succeed where a file of this etag, or none, is."""
    if "IfMatch" in condition:
        return etag != condition["IfMatch"]
    return "IfNoneMatch" in condition and etag is not None


def is_passing(error: BaseException) -> bool:
    """Whether a second try may go better."""
    status, code = answer_of(error)
    if status:
        return status == 429 or (status >= 500 and status != 501) or code in PASSING
    if "CERTIFICATE_VERIFY_FAILED" in str(error) or "redential" in type(error).__name__:
        return False
    return is_outage(error) and type(error).__name__ != "ProfileNotFound"


def answer_of(error: BaseException) -> tuple[int, str]:
    """Status and code of the server's answer that an error tells of; 0 if there was none."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if not isinstance(response, dict):
        return 0, ""
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return status, str(response.get("Error", {}).get("Code", ""))
