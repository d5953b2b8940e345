import logging
import os
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bertray import lease, storage
from bertray.errors import StorageError
from bertray.lease import LEASE, Holder, Lease, hold, read_holder


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.at_wake: list[object] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lease, "time", clock)
    return clock


def nobody(holder: Holder) -> None:
    pytest.fail(f"waits for {holder}")


def put(folder: Path, holder: Holder) -> None:
    storage.put_json(str(folder / LEASE), asdict(holder), overwrite=True)


def elsewhere() -> Holder:
    return Holder("r", "another-host", 7, "2026-11-24 01:00:00+00:00", "otherboot:pid:[1]/42")


def ended_process() -> Holder:
    """A holder on this machine whose process is gone."""
    code = "import json; from dataclasses import asdict; from bertray.lease import Holder; "
    done = subprocess.run(
        [sys.executable, "-c", code + "print(json.dumps(asdict(Holder.here())))"],
        capture_output=True,
        check=True,
    )
    return Holder(**__import__("json").loads(done.stdout))


def test_the_lease_stands_while_a_run_is_at_work_and_is_gone_afterwards(tmp_path: Path) -> None:
    with hold(str(tmp_path), on_wait=nobody) as waited:
        assert not waited
        holder = read_holder(str(tmp_path))
        assert holder is not None
        assert holder.pid == os.getpid()
    assert read_holder(str(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_waits_for_the_first_ones_end_and_says_for_whom(tmp_path: Path) -> None:
    told = threading.Event()
    holders: list[Holder] = []
    seen: list[bool] = []

    def tell(holder: Holder) -> None:
        holders.append(holder)
        told.set()

    def second() -> None:
        with hold(str(tmp_path), on_wait=tell) as waited:
            seen.append(waited)

    with hold(str(tmp_path), on_wait=nobody):
        thread = threading.Thread(target=second)
        thread.start()
        assert told.wait(30)
        assert not seen
    thread.join(30)
    assert seen == [True]
    assert [holder.pid for holder in holders] == [os.getpid()]


def test_a_lease_that_stands_still_is_taken_over_after_its_expiry_by_our_own_clock(
    tmp_path: Path, clock: Clock
) -> None:
    put(tmp_path, elsewhere())
    os.utime(tmp_path / LEASE, (4e9, 4e9))  # its writer's clock is decades ahead
    start = clock.now
    with hold(str(tmp_path), on_wait=lambda holder: None) as waited:
        assert waited
        assert lease.EXPIRY_S <= clock.now - start <= lease.EXPIRY_S + lease.POLL_S


def test_a_lease_whose_heart_beats_is_never_taken_over(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = elsewhere()
    put(tmp_path, holder)
    beats = 0

    def sleep(seconds: float) -> None:
        nonlocal beats
        clock.now += lease.EXPIRY_S * 0.9
        beats += 1
        if beats < 20:
            put(tmp_path, replace(holder, beat=beats))
        else:
            (tmp_path / LEASE).unlink()

    monkeypatch.setattr(clock, "sleep", sleep)
    with hold(str(tmp_path), on_wait=lambda holder: None) as waited:
        assert waited
    assert beats == 20


def test_the_lease_of_a_process_of_this_machine_that_is_gone_is_taken_over_at_once(
    tmp_path: Path, clock: Clock
) -> None:
    put(tmp_path, ended_process())
    assert read_holder(str(tmp_path)) is None
    with hold(str(tmp_path), on_wait=nobody) as waited:
        assert not waited


def test_a_process_id_that_was_given_again_does_not_pass_for_the_dead_process() -> None:
    me = Holder.here()
    assert not me.has_ended
    machine, _, start = me.process.rpartition("/")
    assert replace(me, process=f"{machine}/{int(start) - 1}").has_ended
    assert not replace(me, process=f"otherboot:{machine}/{start}").has_ended
    assert not replace(me, process="").has_ended


def test_of_two_who_take_over_the_same_lease_one_gets_it(tmp_path: Path) -> None:
    put(tmp_path, ended_process())
    uri = str(tmp_path / LEASE)
    barrier = threading.Barrier(8)
    leases = [Lease(uri, replace(Holder.here(), run=f"run {number}")) for number in range(8)]
    version = storage.version_of(uri)
    won: list[bool] = []

    def take(one: Lease) -> None:
        barrier.wait()
        won.append(one._put(replaces=version))

    threads = [threading.Thread(target=take, args=(one,)) for one in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 7 + [True]


def test_a_run_that_lost_its_lease_goes_on_with_a_warning_and_leaves_the_new_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.0)
    other = elsewhere()
    mine = Lease(str(tmp_path / LEASE), Holder.here())
    assert not mine.take(nobody)
    put(tmp_path, other)
    with caplog.at_level(logging.WARNING):
        mine.keep(threading.Event())  # ends by itself
        mine.release()
    assert "took this one for dead" in caplog.text
    assert read_holder(str(tmp_path)) == other


def test_a_lease_that_was_removed_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Lease(str(tmp_path / LEASE), Holder.here())
    mine.take(nobody)
    (tmp_path / LEASE).unlink()
    assert mine._renew()
    assert read_holder(str(tmp_path)) is not None


def test_storage_that_fails_costs_the_lease_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise StorageError("the store is away")

    beaten = threading.Event()
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.0)
    monkeypatch.setattr(storage, "put_json", fail)
    monkeypatch.setattr(storage, "get_json", fail)
    real = lease.logger.warning

    def warn(message: str, *args: object) -> None:
        real(message, *args)
        if "renewed" in message:
            beaten.set()

    monkeypatch.setattr(lease.logger, "warning", warn)
    with hold(str(tmp_path), on_wait=nobody) as waited:
        assert not waited
        assert beaten.wait(30)
    assert "working without a lease: the store is away" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run": 1, "what": 2}', "\x00"])
def test_a_lease_that_makes_no_sense_stops_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / LEASE).write_text(text)
    assert read_holder(str(tmp_path)) is None
    with hold(str(tmp_path), on_wait=nobody) as waited:
        assert not waited
        assert read_holder(str(tmp_path)) is not None
