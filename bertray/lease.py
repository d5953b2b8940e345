"""Which run is at work on an output folder, so that a second one waits and need not do it twice.

Of scoring it only saves work: two runs that both believe to hold the lease end right all the same,
because a split is committed once (`ShardSink`). Of two trainings the first to end takes the other's
checkpoints with it. Nothing in here fails a run: what cannot be read or written is a warning.

Clocks are never compared. A lease has expired when its file has not changed for `EXPIRY_S` by the
clock of the one who watches it, or at once if its process is known to have ended.
"""

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from bertray import storage
from bertray.errors import StorageError

logger = logging.getLogger(__name__)

LEASE = "_lease.json"
HEARTBEAT_S = 10.0
EXPIRY_S = 60.0
POLL_S = 2.0


@dataclass(frozen=True)
class Holder:
    """A run that is at work on an output folder.

    Attributes:
        run: its own random name.
        host: where its driver runs.
        pid: of the driver.
        started: when, in UTC, for people.
        process: names the driver's process among all of its machine's, restarts included; empty
            where the system does not tell.
        beat: goes up with each heartbeat, so that the file's version changes.
    """

    run: str
    host: str
    pid: int
    started: str
    process: str
    beat: int = 0

    @classmethod
    def here(cls) -> "Holder":
        """A new run of the process that asks."""
        return cls(
            run=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
            process=_process(os.getpid()),
        )

    @property
    def has_ended(self) -> bool:
        """Whether its process is known to be gone; False if that cannot be seen from here."""
        machine, _, _ = self.process.rpartition("/")
        here, _, _ = _process(os.getpid()).rpartition("/")
        return bool(machine) and machine == here and _process(self.pid) != self.process


@contextmanager
def hold(output: str, *, on_wait: Callable[[Holder], None]) -> Iterator[bool]:
    """Hold the lease of an output folder; if another run has it, wait until it lets go or dies.

    Args:
        output: the folder.
        on_wait: called once with the holder before waiting for it.

    Yields:
        Whether it had to wait, so that the folder may hold more than before.
    """
    lease = Lease(storage.join(output, LEASE), Holder.here())
    waited = lease.take(on_wait)
    stop = threading.Event()
    heartbeat = threading.Thread(target=lease.keep, args=(stop,), name="lease", daemon=True)
    heartbeat.start()
    try:
        yield waited
    finally:
        stop.set()
        heartbeat.join()
        lease.release()


def read_holder(output: str) -> Holder | None:
    """The run that is at work on a folder, as far as it says so; it may have died since."""
    holder = _read(storage.join(output, LEASE))
    return None if holder is None or holder.has_ended else holder


class Lease:
    """The file that says who is at work, from one run's point of view."""

    def __init__(self, uri: str, me: Holder) -> None:
        self._uri = uri
        self._me = me

    def take(self, on_wait: Callable[[Holder], None]) -> bool:
        """Make the lease ours; gives whether that took waiting for another run's end."""
        waited = False
        try:
            for holder in self._others():
                if not waited:
                    waited = True
                    on_wait(holder)
        except Exception as error:  # each cloud's client has errors of its own
            logger.warning("%s: working without a lease: %s", self._uri, storage.reason_of(error))
        return waited

    def keep(self, stop: threading.Event) -> None:
        """Renew the lease until told to stop, or until another run has taken it."""
        while not stop.wait(HEARTBEAT_S):
            self._me = replace(self._me, beat=self._me.beat + 1)
            try:
                if not self._renew():
                    logger.warning(
                        "%s: another run took this one for dead; both go on, and some work may be "
                        "done twice",
                        self._uri,
                    )
                    return
            except Exception as error:  # likewise
                logger.warning("%s: cannot be renewed: %s", self._uri, storage.reason_of(error))

    def release(self) -> None:
        """Let the next run begin at once."""
        try:
            if self._is_mine():
                storage.remove(self._uri)
        except Exception as error:  # likewise
            logger.warning("%s: cannot be removed: %s", self._uri, storage.reason_of(error))

    def _others(self) -> Iterator[Holder]:
        """Whoever holds the lease, again and again; ends when it is ours."""
        seen, since = "", time.monotonic()
        while not self._create():
            with contextlib.suppress(FileNotFoundError):  # let go since
                version = storage.version_of(self._uri)
                holder = _read(self._uri)
                if version != seen:
                    seen, since = version, time.monotonic()
                expired = time.monotonic() - since >= EXPIRY_S
                if holder is None or holder.has_ended or expired:
                    if self._put(replaces=version):
                        return
                    continue
                yield holder
                time.sleep(POLL_S)

    def _renew(self) -> bool:
        """Write a newer beat over the last one; False if the lease is another run's now."""
        try:
            version = storage.version_of(self._uri)
        except FileNotFoundError:  # removed by hand, or with the folder that is started over
            return self._create() or self._is_mine()
        return self._is_mine() and (self._put(replaces=version) or self._is_mine())

    def _is_mine(self) -> bool:
        holder = _read(self._uri)
        return holder is not None and holder.run == self._me.run

    def _create(self) -> bool:
        return storage.put_json(self._uri, asdict(self._me))

    def _put(self, *, replaces: str) -> bool:
        return storage.put_json(self._uri, asdict(self._me), replaces=replaces)


def _read(uri: str) -> Holder | None:
    """Who a lease names; None if there is none, or if it is not to be understood."""
    try:
        found = storage.get_json(uri)
        return None if found is None else Holder(**found)
    except (StorageError, TypeError):
        return None


def _process(pid: int) -> str:
    """BOOT/NAMESPACE/START of a process, which no other process ever shares; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return ""
    try:
        # The name in parentheses may hold anything; the start is the 20th field after it.
        start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        start = ""
    return f"{boot}:{namespace}/{start}"
