"""Local disk and S3 keep the same promises: what takes a ``place`` runs on both."""

import errno
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_proxy import FaultProxy
from writers import meet, put_at_once

from bertray import storage
from bertray.errors import OutputError, StorageError
from bertray.storage import local, s3
from bertray.storage.listing import relative

NOBODY = 65534
ODD_NAMES = [
    "a b.parquet",
    "c+d=%20.parquet",
    "day=1/é ü.parquet",
    "o[1]/*?.parquet",
    "x::y.parquet",
]


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that is not there yet, with a name that is not plain."""
    if request.param == "disk":
        return str(tmp_path / "place + %23#é")
    return str(request.getfixturevalue("s3"))


def touch(root: str | Path, *names: str) -> None:
    for name in names:
        assert storage.put_bytes(storage.join(str(root), name), name.encode())


def paths(uri: str, suffix: str = "") -> list[str]:
    return [file.path for file in storage.list_files(uri, suffix=suffix, key="input.path")[1]]


def everything(place: str) -> list[str]:
    """All that is there, hidden or not, whole or not."""
    fs, path = storage.resolve(place)
    found = [name.removeprefix(f"{path}/") for name in fs.find(path)] if fs.exists(path) else []
    if not storage.is_local(place):
        key = path.partition("/")[2]
        uploads = fs.call_s3("list_multipart_uploads", Bucket="lake", Prefix=key)
        found += [upload["Key"] for upload in uploads.get("Uploads", [])]
    return sorted(found)


def at_once(work: Callable[[int], bool], count: int = 8) -> list[int]:
    """Those of some threads that say yes."""
    start = threading.Barrier(count)

    def go(number: int) -> bool:
        start.wait()
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return [number for number, done in enumerate(threads.map(go, range(count))) if done]


def test_listing_is_recursive_sorted_and_leaves_hidden_and_foreign_files_out(place: str) -> None:
    touch(
        place, *ODD_NAMES, "_SUCCESS", ".x.parquet", "notes.txt", "_tmp/c.parquet", "d/.e/f.parquet"
    )
    root, files = storage.list_files(place, suffix=".parquet", key="input.path")
    assert root == place
    assert [file.path for file in files] == sorted(ODD_NAMES)
    assert files[0].size_bytes == len("a b.parquet")
    for file in files:
        uri = storage.join(root, file.path)
        assert storage.get_bytes(uri) == file.path.encode()
        assert storage.version_of(uri) == file.version
        assert storage.exists(uri)


@pytest.mark.parametrize(
    ("uri", "root", "found"),
    [
        ("in/a.parquet", "in", ["a.parquet"]),
        ("in/*.parquet", "in", ["a.parquet", "b.parquet"]),
        ("in/**/c*.parquet", "in", ["deep/c.parquet"]),
        ("in/", "in", ["a.parquet", "b.parquet", "deep/c.parquet"]),
    ],
)
def test_a_file_or_a_glob_is_listed_below_its_folder(
    place: str, uri: str, root: str, found: list[str]
) -> None:
    touch(storage.join(place, "in"), "a.parquet", "b.parquet", "deep/c.parquet")
    above, files = storage.list_files(storage.join(place, uri), suffix="", key="input.path")
    assert above == storage.join(place, root)
    assert [file.path for file in files] == found


@pytest.mark.parametrize("name", ["a.parquet", "day=1/a.parquet", "..a", "a..", "...", "a/..b/c"])
def test_a_file_below_a_folder_has_a_path_relative_to_it(name: str) -> None:
    assert storage.is_below(name)
    assert relative("/lake", f"/lake/{name}") == name
    assert relative("lake/", f"lake/{name}") == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "../../etc/passwd", "a/../../b", "a/../b", "./a", "a//b", "a/"]
)
def test_a_path_that_leads_out_of_a_folder_or_has_a_plainer_one_is_refused(name: str) -> None:
    assert not storage.is_below(name)
    with pytest.raises(StorageError, match="not a path that a file can have"):
        relative("lake", f"lake/{name}")


def test_a_path_from_the_top_is_below_no_folder() -> None:
    assert not storage.is_below("/etc/passwd")
    with pytest.raises(StorageError, match="/etc/passwd: not a path"):
        relative("/lake", "/etc/passwd")


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(place: str) -> None:
    touch(place, "o[1]/a.parquet", "o1/b.parquet")
    assert paths(storage.join(place, "o[1]")) == ["a.parquet"]


def test_a_file_that_grows_or_comes_is_seen_at_once(place: str) -> None:
    uri = storage.join(place, "a")
    assert not storage.exists(uri)
    assert storage.get_bytes(uri) is None
    storage.put_bytes(uri, b"one")
    assert (storage.exists(uri), storage.exists(place), paths(place)) == (True, True, ["a"])
    before = storage.version_of(uri)
    storage.put_bytes(uri, b"other", overwrite=True)
    assert storage.get_bytes(uri) == b"other"
    (file,) = storage.list_files(place, suffix="", key="input.path")[1]
    assert file.version == storage.version_of(uri) != before
    assert file.size_bytes == 5
    with pytest.raises(FileNotFoundError):
        storage.version_of(storage.join(place, "b"))


def test_a_place_that_is_not_there_is_named(place: str) -> None:
    with pytest.raises(StorageError) as caught:
        storage.list_files(storage.join(place, "none"), suffix="", key="input.path")
    assert str(caught.value) == f"input.path={place}/none: no such file or folder"
    with pytest.raises(StorageError, match="nofs://x"):
        storage.list_files("nofs://x", suffix="", key="input.path")


def test_parquet_is_read_at_random(place: str, tmp_path: Path) -> None:
    uri = storage.join(place, "a.parquet")
    table = pa.table({"number": range(5000), "text": ["x" * 50] * 5000})
    with storage.staging(uri) as staged:
        pq.write_table(table, staged, row_group_size=1000)
        assert storage.publish(staged, uri)
    with storage.open_input(uri) as file:
        assert pq.ParquetFile(file).read_row_group(3)["number"].to_pylist() == [*range(3000, 4000)]
    with pytest.raises(FileNotFoundError), storage.open_input(storage.join(place, "b.parquet")):
        pass


def test_the_first_writer_wins_and_nothing_unfinished_stays(place: str) -> None:
    uri = storage.join(place, "deep/file")
    assert storage.put_bytes(uri, b"first")
    assert not storage.put_bytes(uri, b"second")
    assert storage.get_bytes(uri) == b"first"
    assert storage.put_bytes(uri, b"third", overwrite=True)
    assert storage.get_bytes(uri) == b"third"
    assert everything(place) == ["deep/file"]


def test_of_eight_writers_at_once_one_wins_whole(place: str) -> None:
    uri = storage.join(place, "file")
    (winner,) = at_once(lambda number: storage.put_bytes(uri, b"%d" % number * 1000))
    assert storage.get_bytes(uri) == b"%d" % winner * 1000
    assert everything(place) == ["file"]


def test_only_the_version_that_was_meant_is_replaced(place: str) -> None:
    uri = storage.join(place, "file")
    storage.put_bytes(uri, b"one")
    old = storage.version_of(uri)
    assert storage.put_bytes(uri, b"another", replaces=old)
    assert storage.get_bytes(uri) == b"another"
    assert not storage.put_bytes(uri, b"a late one", replaces=old)
    assert storage.get_bytes(uri) == b"another"
    assert not storage.put_bytes(storage.join(place, "none"), b"x", replaces=old)
    assert everything(place) == ["file"]


def test_of_eight_who_replace_one_version_one_wins_and_a_reader_never_misses_the_file(
    place: str,
) -> None:
    uri = storage.join(place, "file")
    storage.put_bytes(uri, b"old" * 1000)
    old = storage.version_of(uri)
    seen: set[bytes | None] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.add(storage.get_bytes(uri))

    watcher = threading.Thread(target=watch)
    watcher.start()
    (winner,) = at_once(lambda n: storage.put_bytes(uri, b"%d" % n * 1000, replaces=old))
    done.set()
    watcher.join()
    assert storage.get_bytes(uri) == b"%d" % winner * 1000
    assert seen <= {b"old" * 1000, b"%d" % winner * 1000}
    assert everything(place) == ["file"]


def test_an_exception_while_building_leaves_nothing(place: str) -> None:
    def build() -> None:
        with storage.staging(storage.join(place, "file")) as staged:
            staged.write_bytes(b"half")
            raise RuntimeError

    before = set(Path(tempfile.gettempdir()).glob(".bertray-*"))
    with pytest.raises(RuntimeError):
        build()
    assert everything(place) == []
    assert set(Path(tempfile.gettempdir()).glob(".bertray-*")) <= before


def test_json_that_is_none_is_named(place: str) -> None:
    uri = storage.join(place, "x.json")
    storage.put_json(uri, {"ü": 1})
    assert storage.get_json(uri) == {"ü": 1}
    storage.put_bytes(uri, b"{", overwrite=True)
    with pytest.raises(StorageError, match=r"x\.json: not a JSON document"):
        storage.get_json(uri)
    assert storage.get_json(storage.join(place, "gone.json")) is None


def test_a_folder_with_no_more_than_our_unfinished_files_is_empty(place: str) -> None:
    assert storage.is_empty(place)
    touch(place, f".bertray-{'0' * 32}.tmp")
    assert storage.is_empty(place)
    touch(place, ".theirs")
    assert not storage.is_empty(place)
    assert storage.is_empty(place, but_for=".theirs")
    touch(place, "deep/.theirs")
    assert not storage.is_empty(place, but_for=".theirs")


def test_what_is_removed_is_gone_and_its_neighbour_is_not(place: str) -> None:
    touch(place, *(f"out/{name}" for name in ODD_NAMES), "out/_hidden", "out2/a", "file", "file2")
    storage.remove(storage.join(place, "out"))
    storage.remove(storage.join(place, "file"))
    storage.remove(storage.join(place, "none"))
    assert everything(place) == ["file2", "out2/a"]
    storage.remove(storage.join(place, "out2/a"))
    assert everything(place) == ["file2"]


def test_a_folder_is_downloaded_as_it_is(place: str, tmp_path: Path) -> None:
    touch(place, *ODD_NAMES, ".hidden")
    storage.download(place, tmp_path / "here")
    found = [path for path in (tmp_path / "here").rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(tmp_path / "here")) for path in found) == sorted(
        [*ODD_NAMES, ".hidden"]
    )
    assert all(
        path.read_bytes().decode() == str(path.relative_to(tmp_path / "here")) for path in found
    )


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("gs://lake/in", r"gs://lake/in: gs:// needs a package: pip install gcsfs$"),
        ("abfs://lake/in", r"abfs:// needs a package: pip install adlfs$"),
        ("s4://lake/in", r"Protocol not known: s4; known are s3, gs, abfs and more$"),
    ],
)
def test_a_scheme_that_cannot_be_had_is_answered_with_what_can(
    uri: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(StorageError, match=message):
        storage.resolve(uri)


def test_a_client_whose_library_does_not_load_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(uri: str) -> None:
        raise OSError("Unable to load libjvm\ndlopen(/usr/lib/jvm) failed")

    monkeypatch.setattr(storage, "url_to_fs", broken)
    with pytest.raises(StorageError, match=r"cannot be reached: Unable to load libjvm; .*Java.*$"):
        storage.resolve("hdfs://name:8020/in")


def test_that_no_shard_is_found_is_said_of_what_is_there(tmp_path: Path) -> None:
    def said(place: Path) -> str:
        words = storage.none_found(str(place), suffix=".parquet", key="input.path")
        return words.removeprefix(f"input.path={place}: ")

    assert said(tmp_path) == "no *.parquet files in there"
    assert said(tmp_path / "*.parquet") == "no file matches"
    for name in ("b.csv", "a.csv"):
        (tmp_path / name).write_text("text")
    assert said(tmp_path) == "no *.parquet files in there, but 2 others, such as a.csv"
    assert said(tmp_path / "a*").endswith("but one other, such as a.csv")
    assert said(tmp_path / "a.csv").startswith("a file whose name does not end in .parquet")


def test_credentials_in_a_path_are_refused_and_not_repeated() -> None:
    for uri in (
        "s3://key:hush@lake/in",
        "s3://key:12/hush/+@lake/in",
        "s3a://key:ab/hush@lake",
        "gs://key:hush@lake",
        "https://me:h/hush@host/in",
    ):
        with pytest.raises(StorageError, match="must not hold credentials") as caught:
            storage.list_files(uri, suffix="", key="input.path")
        assert "hush" not in str(caught.value)
        assert "hush" not in storage.without_secrets(f"at {uri}: no")
    arn = "arn:aws:s3:eu-west-1:1:accesspoint/mine"
    for uri in ("memory://host:8020/in@2", "s3://lake/in:1@2", f"s3://{arn}/in/me@host.parquet"):
        assert storage.resolve(uri)
        assert storage.without_secrets(uri) == uri


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK])
def test_where_there_are_no_hard_links_a_file_is_put_all_the_same_and_not_over_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_links)
    assert storage.put_bytes(f"{tmp_path}/a", b"one")
    assert not storage.put_bytes(f"{tmp_path}/a", b"two")
    assert storage.get_bytes(f"{tmp_path}/a") == b"one"
    assert everything(str(tmp_path)) == ["a"]


def test_of_processes_at_once_one_wins_whole(tmp_path: Path) -> None:
    uri, count = str(tmp_path / "file"), 4
    context = multiprocessing.get_context("spawn")
    with context.Pool(count, meet, (context.Barrier(count),)) as pool:
        version = None
        for _ in range(5):
            tasks = [(uri, number, version) for number in range(count)]
            wins = pool.starmap(put_at_once, tasks, chunksize=1)
            assert sum(wins) == 1
            assert storage.get_bytes(uri) == str(wins.index(True)).encode() * 1000
            storage.put_bytes(uri, b"next round", overwrite=True)
            version = storage.version_of(uri)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_links_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/x.parquet", "elsewhere/deep/y.parquet", "in/a.parquet")
    (tmp_path / "in/link.parquet").symlink_to(tmp_path / "elsewhere/x.parquet")
    (tmp_path / "in/sub").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/nowhere.parquet").symlink_to(tmp_path / "gone")
    assert paths(str(tmp_path / "in"), ".parquet") == [
        "a.parquet",
        "link.parquet",
        "sub/deep/y.parquet",
        "sub/x.parquet",
    ]


@pytest.fixture
def not_root() -> Iterator[None]:
    """Root may read everything, so it becomes nobody for a while."""
    mine = os.geteuid()
    if not mine:
        os.seteuid(NOBODY)
    yield
    os.seteuid(mine)


def test_a_folder_that_may_not_be_listed_is_no_empty_one(not_root: None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        touch(Path(folder), "in/a.parquet", "in/closed/b.parquet")
        (Path(folder) / "in/closed").chmod(0)
        try:
            with pytest.raises(StorageError, match="cannot be listed: Permission denied"):
                paths(f"{folder}/in")
        finally:
            (Path(folder) / "in/closed").chmod(0o700)


def test_a_place_that_may_not_be_looked_at_or_written_to_is_the_users_to_mend(
    not_root: None,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        touch(folder, "a")
        for mode, do, error in (
            (0o500, lambda: storage.put_bytes(f"{folder}/b", b"x"), OutputError),
            (0o500, lambda: storage.put_bytes(f"{folder}/new/b", b"x"), OutputError),
            (0o500, lambda: storage.remove(f"{folder}/a"), OutputError),
            (0, lambda: storage.exists(f"{folder}/a"), StorageError),
            (0, lambda: storage.get_bytes(f"{folder}/a"), StorageError),
        ):
            Path(folder).chmod(mode)
            try:
                with pytest.raises(error, match=rf"{folder}/.*: cannot be .*: Permission denied"):
                    do()
            finally:
                Path(folder).chmod(0o700)


def test_a_full_disk_is_the_users_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="cannot be written to: No space left on device; mend"):
        storage.put_json(str(tmp_path / "_manifest.json"), {})
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_has_become_read_only_is_the_users_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a disk refuses to remove a file before it looks whether there is one."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(OutputError, match="cannot be written to: Read-only file system; mend"):
        storage.put_json(str(tmp_path / "_manifest.json"), {})


def test_sweeping_takes_our_old_unfinished_files_and_no_others(tmp_path: Path) -> None:
    old, new = (tmp_path / f"deep/.bertray-{digit * 32}.tmp" for digit in "01")
    touch(tmp_path, f"deep/{old.name}", f"deep/{new.name}", "deep/.theirs.tmp", "deep/a.parquet")
    long_ago = time.time() - 700
    for path in (tmp_path / "deep").iterdir():
        if path != new:
            os.utime(path, (long_ago, long_ago))
    storage.sweep(str(tmp_path), older_than_s=600)
    assert everything(str(tmp_path)) == sorted(
        [f"deep/{new.name}", "deep/.theirs.tmp", "deep/a.parquet"]
    )
    storage.sweep(str(tmp_path / "none"), older_than_s=600)


def test_what_killed_processes_staged_for_elsewhere_does_not_pile_up(
    tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = [tmp_path / f".bertray-{digit * 32}.tmp" for digit in "01"]
    touch(tmp_path, *(path.name for path in left), "theirs.tmp")
    long_ago = time.time() - local.STAGED_FOR_S - 1
    for path in (left[0], tmp_path / "theirs.tmp"):
        os.utime(path, (long_ago, long_ago))
    touch(s3, "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [left[1].name, "theirs.tmp"]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Content that goes in three parts."""
    monkeypatch.setattr(s3, "PART_BYTES", 5 * 2**20)  # the least that S3 takes
    return os.urandom(11 * 2**20)


def test_what_goes_in_parts_is_whole_and_under_the_same_conditions(
    s3: str, s3_server: FaultProxy, small_parts: bytes
) -> None:
    uri = storage.join(s3, "big")
    assert storage.put_bytes(uri, small_parts)
    assert [method for method, path in s3_server.requests if "partNumber" in path] == ["PUT"] * 3
    old = storage.version_of(uri)
    assert not storage.put_bytes(uri, small_parts[1:])
    assert storage.get_bytes(uri) == small_parts
    assert storage.put_bytes(uri, small_parts[2:], replaces=old)
    assert not storage.put_bytes(uri, small_parts[3:], replaces=old)
    assert storage.get_bytes(uri) == small_parts[2:]
    assert everything(s3) == ["big"]


def test_sweeping_aborts_old_uploads_below_a_folder_and_no_others(s3: str) -> None:
    fs, path = storage.resolve(s3)
    key = path.partition("/")[2]
    for name in ("out/a", "out2/b"):
        fs.call_s3("create_multipart_upload", Bucket="lake", Key=f"{key}/{name}")
    storage.sweep(storage.join(s3, "out"), older_than_s=600)
    assert everything(s3) == [f"{key}/out/a", f"{key}/out2/b"]
    storage.sweep(storage.join(s3, "out"), older_than_s=-1)
    assert everything(s3) == [f"{key}/out2/b"]


def test_what_stands_for_a_folder_on_s3_is_no_file(s3: str) -> None:
    fs, path = storage.resolve(s3)
    fs.call_s3("put_object", Bucket="lake", Key=f"{path.partition('/')[2]}/in/", Body=b"")
    assert storage.is_empty(storage.join(s3, "in"))
    touch(s3, "in/a.parquet")
    assert paths(storage.join(s3, "in")) == ["a.parquet"]


def test_what_python_pickles_of_a_filesystem_holds_no_credentials(s3: str) -> None:
    fs, _ = storage.resolve(s3)
    text = json.dumps(fs.to_dict()) + repr(fs) + repr(fs.storage_options)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in text
    assert os.environ["AWS_ACCESS_KEY_ID"] not in text
