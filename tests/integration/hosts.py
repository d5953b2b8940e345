"""Hosts on this machine that only the network joins: for a launcher over ssh, and for links to cut.

Each has a network, processes, mounts, a host name, a home and an sshd of its own, as Linux
namespaces have it. A switch between them is another namespace, so nothing of this machine's network
is touched. Files outside of /run, /tmp/ray and /dev/shm are this machine's: they all share them.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

NEEDED = ("ip", "unshare", "nsenter", "sshd", "ssh-keygen", "rsync")
START_S = 30.0
SHARED_MEMORY = "8g"  # a limit; Ray wants a third of the memory to be possible
UNSHARE = "unshare --mount --pid --fork --uts --kill-child --mount-proc"


@dataclass(frozen=True)
class Host:
    """One of them.

    Attributes:
        name: of the host and its network namespace.
        address: IPv4.
        home: of root there.
        pid: of its first process, as this machine counts.
        plug: its end of the link, on the switch.
    """

    name: str
    address: str
    home: Path
    pid: int
    plug: str

    def command(self, words: Sequence[str]) -> list[str]:
        """To run words there, as root logs in."""
        inside = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--net", "--uts"]
        return [*inside, "env", f"HOME={self.home}", *words]

    def run(
        self, *words: str, timeout: float, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Do so, and wait for the end."""
        with self.start(*words, stdout=subprocess.PIPE, **environment) as process:
            try:
                said, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                said, _ = process.communicate()
                pytest.fail(f"{' '.join(words)} on {self.name}: not done after {timeout} s\n{said}")
        return subprocess.CompletedProcess(words, process.returncode, said)

    def start(
        self, *words: str, stdout: int | IO[bytes] = subprocess.DEVNULL, **environment: str
    ) -> "subprocess.Popen[str]":
        """Without waiting."""
        return subprocess.Popen(
            self.command(words),
            env=os.environ | environment,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@dataclass(frozen=True)
class Network:
    """Hosts that reach each other, the first of them yours."""

    hosts: Sequence[Host]
    switch: str

    def cut(self, host: Host) -> None:
        """Pull a host's plug."""
        _ip("-netns", self.switch, "link", "set", host.plug, "down")

    def lose(self, host: Host) -> None:
        """Let all that runs on a host end at once."""
        os.kill(host.pid, signal.SIGKILL)

    def mend(self, host: Host) -> None:
        """Put it back."""
        _ip("-netns", self.switch, "link", "set", host.plug, "up")


@contextmanager
def running(count: int, *, folder: Path, number: int = os.getpid()) -> Iterator[Network]:
    """So many hosts, with ssh keys that let each into all others; gone at the end.

    Args:
        count: how many.
        folder: of their homes.
        number: sets apart networks at once on one machine.
    """
    missing = [
        name
        for name in NEEDED
        if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None
    ]
    if missing or os.geteuid() != 0:
        reason = f"needs root and {', '.join(missing) or 'nothing else'}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    key = folder / "key"
    folder.mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    with ExitStack() as stack:
        switch = f"bertray-{number}"
        _namespace(switch, stack)
        _ip("-netns", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-netns", switch, "link", "set", "bridge", "up")
        hosts = [
            stack.enter_context(_host(index, folder=folder, switch=switch))
            for index in range(1, count + 1)
        ]
        yield Network(hosts, switch)


@contextmanager
def _host(index: int, *, folder: Path, switch: str) -> Iterator[Host]:
    name, address, plug = f"{switch}-{index}", f"10.77.5.{index}", f"plug{index}"
    home = _home(folder / name, key=folder / "key")
    with ExitStack() as stack:
        _namespace(name, stack)
        ends = ["link", "add", plug, "type", "veth", "peer", "name", "eth0", "netns", name]
        _ip("-netns", switch, *ends)
        _ip("-netns", switch, "link", "set", plug, "master", "bridge", "up")
        _ip("-netns", name, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-netns", name, "link", "set", device, "up")
        # Ray asks which of its addresses a packet to the world would leave by.
        _ip("-netns", name, "route", "add", "default", "dev", "eth0")
        log = stack.enter_context((home / "sshd.log").open("wb"))
        first = subprocess.Popen(
            [
                *f"ip netns exec {name} {UNSHARE} bash -euc".split(),
                BOOT,
                "boot",
                str(home),
                name,
                address,
            ],
            stdout=log,
            stderr=log,
        )
        stack.callback(_end, first)
        pid = _child_of(first.pid)
        host = Host(name, address, home, pid, plug)
        deadline = time.monotonic() + START_S
        while not (home / "sshd.pid").exists():
            assert first.poll() is None, (home / "sshd.log").read_text()
            assert time.monotonic() < deadline, f"no sshd on {name}"
            time.sleep(0.05)
        yield host


# What a host's first process does, in its namespaces: what is not to be this machine's is mounted
# over, and an sshd is left in the foreground.
BOOT = f"""
hostname "$2"
mount -t tmpfs none /run
mount -t tmpfs -o size={SHARED_MEMORY} none /dev/shm
mkdir -p /tmp/ray /run/sshd
mount -t tmpfs none /tmp/ray
sed "s|^root:.*|root:x:0:0:root:$1:/bin/bash|" /etc/passwd > "$1/passwd"
mount --bind "$1/passwd" /etc/passwd
printf '127.0.0.1 localhost\\n%s %s\\n' "$3" "$2" > "$1/hosts"
mount --bind "$1/hosts" /etc/hosts
exec /usr/sbin/sshd -D -e -f "$1/sshd_config"
"""


def _home(home: Path, *, key: Path) -> Path:
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    (home / ".bashrc").touch()
    shutil.copy(key, home / ".ssh/id_ed25519")
    shutil.copy(f"{key}.pub", home / ".ssh/authorized_keys")
    (home / "sshd_config").write_text(
        f"HostKey {key}\n"
        f"PidFile {home}/sshd.pid\n"
        f"AuthorizedKeysFile {home}/.ssh/authorized_keys\n"
        "PermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\n"
        "MaxStartups 100\nMaxSessions 100\n"
    )
    return home


def _namespace(name: str, stack: ExitStack) -> None:
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "delete", name)


def _child_of(pid: int) -> int:
    """The process that `unshare --fork` begins the host with."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    deadline = time.monotonic() + START_S
    while not (found := children.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(found[0])


def _end(first: "subprocess.Popen[bytes]") -> None:
    """A host's first process takes all others with it."""
    with contextlib.suppress(ProcessLookupError):
        first.kill()
    first.wait(timeout=START_S)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
