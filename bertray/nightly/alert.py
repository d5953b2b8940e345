"""A word to whoever is on call."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from bertray import storage
from bertray.config import Alert
from bertray.nightly.history import Night

logger = logging.getLogger(__name__)

TIMEOUT_S = 10.0
TRIES = 3


def send_alert(settings: Alert, night: Night, *, page: str) -> None:
    """Post the night to the webhook, if it is one to be told of.

    That nobody takes it is a warning: the night is done all the same.
    """
    if settings.on == "always" or night.trouble:
        _post(settings, message_of(night, page=page))


@contextmanager
def alert_of_failure(settings: Alert, *, output: str) -> Iterator[None]:
    """Post what ends a night before its page is there.

    Args:
        settings: whom to tell.
        output: the folder that was to be scored into.
    """
    try:
        yield
    except Exception as error:
        said = f"failed: {storage.reason_of(error)}"
        text = f"bertray night into {output} {said}"
        _post(settings, {"text": text, "trouble": said, "output": output})
        raise


def _post(settings: Alert, message: dict[str, Any]) -> None:
    if settings.webhook is None:
        return
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it tells the address
    retry = Retry(TRIES, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504))
    # POST too: told twice is better than not at all. Nobody's wish to wait for an hour is heeded.
    retry = retry.new(allowed_methods=None, respect_retry_after_header=False)
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        try:
            session.post(settings.webhook, json=message, timeout=TIMEOUT_S).raise_for_status()
        except requests.RequestException as error:
            # The address may hold a token: it is not repeated.
            logger.warning("alert.webhook: nobody took the alert (%s)", type(error).__name__)


def message_of(night: Night, *, page: str) -> dict[str, Any]:
    """What is posted. ``text`` is what chat systems show."""
    state = night.trouble or "all well"
    return {
        "text": f"bertray night {night.id}: {night.num_rows_new:,} new rows, {state}. {page}",
        "night": night.id,
        "trouble": night.trouble,
        "model": night.model,
        "rows": night.num_rows,
        "rows_new": night.num_rows_new,
        "seconds": round(night.seconds, 1),
        "quarantined": list(night.quarantined),
        "rows_quarantined": night.num_rows_quarantined,
        "drifted": list(night.drifted),
        "notes": list(night.notes),
        "page": page,
    }
