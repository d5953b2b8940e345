import multiprocessing
from pathlib import Path

import pytest

from bertray import storage
from bertray.errors import StorageError


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def test_listing_is_recursive_sorted_and_leaves_hidden_and_foreign_files_out(
    tmp_path: Path,
) -> None:
    touch(tmp_path, "b.parquet", "day=1/a b%#é.parquet", "_SUCCESS", ".x.parquet", "notes.txt")
    touch(tmp_path, "_tmp/c.parquet", "day=1/.d/e.parquet")
    root, files = storage.list_files(str(tmp_path), suffix=".parquet", key="input.path")
    assert root == str(tmp_path)
    assert [file.path for file in files] == ["b.parquet", "day=1/a b%#é.parquet"]
    assert files[0].size_bytes == len("b.parquet")


@pytest.mark.parametrize(
    ("uri", "root", "paths"),
    [
        ("in/a.parquet", "in", ["a.parquet"]),
        ("in/*.parquet", "in", ["a.parquet", "b.parquet"]),
        ("in/**/c*.parquet", "in", ["deep/c.parquet"]),
    ],
)
def test_a_file_or_a_glob_is_listed_below_its_folder(
    tmp_path: Path, uri: str, root: str, paths: list[str]
) -> None:
    touch(tmp_path / "in", "a.parquet", "b.parquet", "deep/c.parquet")
    found, files = storage.list_files(str(tmp_path / uri), suffix=".parquet", key="input.path")
    assert found == str(tmp_path / root)
    assert [file.path for file in files] == paths


def test_a_changed_file_has_another_version(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet")
    before = storage.list_files(str(tmp_path), suffix="", key="input.path")[1][0].version
    (tmp_path / "a.parquet").write_bytes(b"other")
    assert storage.list_files(str(tmp_path), suffix="", key="input.path")[1][0].version != before


def test_a_place_that_is_not_there_is_named() -> None:
    with pytest.raises(StorageError, match=r"input\.path=/no/such/place: no such file"):
        storage.list_files("/no/such/place", suffix="", key="input.path")
    with pytest.raises(StorageError, match="nofs://x"):
        storage.list_files("nofs://x", suffix="", key="input.path")


def test_the_first_writer_wins_and_no_temporary_file_stays(tmp_path: Path) -> None:
    uri = str(tmp_path / "deep" / "file")
    assert storage.put_bytes(uri, b"first")
    assert not storage.put_bytes(uri, b"second")
    assert storage.get_bytes(uri) == b"first"
    assert storage.put_bytes(uri, b"third", overwrite=True)
    assert storage.get_bytes(uri) == b"third"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]


def _race(uri: str, number: int, wins: "multiprocessing.Queue[int]") -> None:
    if storage.put_bytes(uri, str(number).encode() * 1000):
        wins.put(number)


def test_of_eight_writers_at_once_one_wins_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    wins: multiprocessing.Queue[int] = context.Queue()
    uri = str(tmp_path / "file")
    writers = [context.Process(target=_race, args=(uri, n, wins)) for n in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    winner = wins.get(timeout=5)
    assert wins.empty()
    assert storage.get_bytes(uri) == str(winner).encode() * 1000


def test_an_exception_while_building_leaves_nothing(tmp_path: Path) -> None:
    uri = str(tmp_path / "file")

    def build() -> None:
        with storage.staging(uri) as staged:
            staged.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        build()
    assert list(tmp_path.iterdir()) == []


def test_json_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(StorageError, match=r"x\.json: not a JSON document"):
        storage.get_json(str(tmp_path / "x.json"))
    assert storage.get_json(str(tmp_path / "gone.json")) is None


def test_a_folder_with_only_our_unfinished_files_is_empty(tmp_path: Path) -> None:
    assert storage.is_empty(str(tmp_path / "new"))
    touch(tmp_path, f".bertray-{'0' * 32}.tmp")
    assert storage.is_empty(str(tmp_path))
    touch(tmp_path, "theirs")
    assert not storage.is_empty(str(tmp_path))


def test_links_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/x.parquet", "elsewhere/deep/y.parquet", "in/a.parquet")
    (tmp_path / "in/link.parquet").symlink_to(tmp_path / "elsewhere/x.parquet")
    (tmp_path / "in/sub").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/nowhere.parquet").symlink_to(tmp_path / "gone")
    _, files = storage.list_files(str(tmp_path / "in"), suffix=".parquet", key="input.path")
    assert [file.path for file in files] == [
        "a.parquet",
        "link.parquet",
        "sub/deep/y.parquet",
        "sub/x.parquet",
    ]
    assert files[0].version == storage.version_of(str(tmp_path / "in/a.parquet"))


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "o[1]/a.parquet")
    root, files = storage.list_files(str(tmp_path / "o[1]"), suffix="", key="input.path")
    assert (root, [file.path for file in files]) == (str(tmp_path / "o[1]"), ["a.parquet"])
