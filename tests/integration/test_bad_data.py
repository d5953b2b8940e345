"""One night over a lake in which everything is wrong that can be wrong with Parquet.

All shards go through one run of the command; each test looks at what became of one of them.
"""

import datetime
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray import cli
from bertray.schema import EMPTY_TEXT, NOT_UTF8, NULL_TEXT, OK, scored_column_names

Write = Callable[..., Path]
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

MIB = 1 << 20
LIMIT = 128 * MIB
ODD_TEXTS = [
    "good\x00film",
    "\x00",
    "\x01\x02\x7f\x9f",
    "\u202egood film\u202c",
    "\ufeffgood",
    "e\u0301" * 40,
    "\U0001f600" * 9,
    "a\u200db",
]


@dataclass(frozen=True)
class Night:
    """The lake, what one run made of it, and how it ended."""

    source: Path
    output: Path
    code: int
    words: tuple[str, ...]
    proof: Path

    @property
    def manifest(self) -> dict[str, list[dict[str, str]]]:
        return dict(json.loads((self.output / "_manifest.json").read_text()))

    def reason(self, shard: str) -> str:
        reasons = {bad["shard"]: bad["reason"] for bad in self.manifest["quarantined"]}
        return reasons[shard]

    def before(self, shard: str) -> pa.Table:
        return pq.ParquetFile(self.source / shard).read()

    def after(self, shard: str) -> pa.Table:
        return pq.ParquetFile(self.output / shard).read()

    def status(self, shard: str) -> list[str]:
        return list(self.after(shard)["prediction_status"].to_pylist())


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self._proof),)


def strings(*values: bytes) -> pa.StringArray:
    """A column of strings, whatever their bytes: Parquet does not check them."""
    plain = pa.array(values, pa.binary())
    return pa.StringArray.from_buffers(len(plain), plain.buffers()[1], plain.buffers()[2])


def texts(count: int, **columns: object) -> pa.Table:
    values = pa.array([f"good film {number}" for number in range(count)], pa.string())
    return pa.table({"text": values, "id": pa.array(range(count), pa.int64())} | columns)


def extension(name: str, metadata: bytes, storage: pa.Array) -> pa.Table:
    """A column that claims to be of an extension type, as any writer may claim."""
    claim = {"ARROW:extension:name": name, "ARROW:extension:metadata": metadata}
    fields = [pa.field("text", pa.string()), pa.field("x", storage.type, metadata=claim)]
    return pa.table([pa.array(["good"] * len(storage)), storage], schema=pa.schema(fields))


def every_type() -> pa.Table:
    day = datetime.datetime(2026, 11, 24, 3, 59, tzinfo=datetime.UTC)
    columns = {
        "text": pa.array(["good", "bad", "good"]),
        "dictionary": pa.array(["x", None, "x"]).dictionary_encode(),
        "large_string": pa.array(["x", None, "y"], pa.large_string()),
        "string_view": pa.array(["x", None, "a text of more than twelve bytes"], pa.string_view()),
        "struct": pa.array([{"a": 1, "b": {"c": ["x"]}}, None, {"a": None, "b": None}]),
        "decimal": pa.array([Decimal("1.20"), None, Decimal("-9999999.99")], pa.decimal128(20, 2)),
        "timestamp": pa.array([day, None, day], pa.timestamp("us", "Europe/Berlin")),
        "nanoseconds": pa.array([1, None, 3], pa.timestamp("ns")),
        "date": pa.array([day.date(), None, day.date()]),
        "time": pa.array([1, None, 3], pa.time64("us")),
        "duration": pa.array([1, None, 3], pa.duration("ms")),
        "list": pa.array([["x", None], [], None]),
        "large_list": pa.array([[1], [], None], pa.large_list(pa.int16())),
        "fixed_list": pa.array([[1, 2], [3, 4], None], pa.list_(pa.float32(), 2)),
        "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
        "null": pa.nulls(3),
        "binary": pa.array([b"\xff\x00", None, b""]),
        "fixed_binary": pa.array([b"ab", None, b"cd"], pa.binary(2)),
        "half": pa.array([1.5, None, 2.5], pa.float16()),
        "unsigned": pa.array([2**64 - 1, None, 0], pa.uint64()),
    }
    table = pa.table(columns)
    comment = {"comment": "theirs"}
    fields = [
        field.with_metadata(comment) if field.name == "date" else field for field in table.schema
    ]
    return table.cast(pa.schema(fields, metadata={"owner": "them"}))


def deep(levels: int) -> pa.Table:
    kind = pa.int8()
    for _ in range(levels):
        kind = pa.struct([("a", kind)])
    return pa.table([pa.array(["x"]), pa.nulls(1, kind)], names=["text", "deep"])


def write_lake(root: Path, proof: Path) -> None:
    """All shards."""

    def write(name: str, table: pa.Table, **options: object) -> Path:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, **options)
        return path

    whole = write("good.parquet", texts(500), compression="none", write_page_checksum=True)
    content = whole.read_bytes()
    (root / "truncated.parquet").write_bytes(content[:-9])
    (root / "half.parquet").write_bytes(content[: len(content) // 2])
    (root / "zero-bytes.parquet").write_bytes(b"")
    (root / "corrupt-page.parquet").write_bytes(content[:4] + bytes(300) + content[304:])
    place = content.rindex(b"film 250")
    flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    (root / "bit-flip.parquet").write_bytes(flipped)
    write("wrong-type.parquet", pa.table({"text": [1, 2]}))
    write("no-text.parquet", pa.table({"body": ["x"]}))
    write("doubled.parquet", pa.table([["x"], [1], [2]], names=["text", "n", "n"]))
    write("deep.parquet", deep(150), store_schema=False)
    same = pa.DictionaryArray.from_arrays(
        pa.nulls(20_000, pa.int32()).fill_null(0), ["x" * 500_000]
    )
    bomb = write("bomb.parquet", pa.table({"text": same}), compression="zstd", store_schema=False)
    assert bomb.stat().st_size < 1000  # ten gigabytes of text
    one_value = pa.table({"text": ["x" * (400 * MIB)]})
    bomb = write("zstd-bomb.parquet", one_value, compression="zstd", use_dictionary=False)
    assert bomb.stat().st_size < 200_000

    write(
        "not-utf8.parquet",
        pa.table({"text": strings(b"good", b"b\xffd", b"\xc3"), "id": [1, 2, 3]}),
    )
    write("other-not-utf8.parquet", pa.table({"text": ["good"], "raw": strings(b"\xff\xfe")}))
    write("nothing.parquet", pa.table({"text": ["good", None, "", " \t\n\u3000"]}))
    write("nulls-alone.parquet", pa.table({"text": pa.nulls(2), "id": [1, 2]}))
    write("odd.parquet", pa.table({"text": ODD_TEXTS}))
    write("long.parquet", pa.table({"text": ["good film " * (5 * MIB), "bad"]}))
    write("no-rows.parquet", texts(0))
    write("no-row-groups.parquet", texts(0))
    pq.ParquetWriter(root / "no-row-groups.parquet", texts(0).schema).close()
    write("types.parquet", every_type())
    for kind in ("large_string", "string_view"):
        write(f"{kind}.parquet", pa.table({"text": pa.array(["good", None], getattr(pa, kind)())}))
    repeated = pa.array(["good", None, "good"]).dictionary_encode()
    write("dictionary.parquet", pa.table({"text": repeated}))
    write("ids-are-text.parquet", texts(3).set_column(1, "id", [["a", "b", "c"]]))
    write("more-columns.parquet", texts(3, stars=[1.0, None, 2.0]))
    write("day=2026-11-24/part.parquet", texts(3))
    write("100% sure #1/grüße ☃ +&?.parquet", texts(3))
    write("_hidden/part.parquet", texts(3))
    (root / "notes.txt").write_text("no shard")

    trap = pickle.dumps(Trap(proof))
    tensors = pa.array([[1, 2]], pa.list_(pa.int64()))
    write("tensor-trap.parquet", extension("ray.data.arrow_tensor", trap, tensors))
    objects = pa.array([trap], pa.large_binary())
    write("object-trap.parquet", extension("ray.data.arrow_pickled_object", b"", objects))
    write("unknown-type.parquet", extension("acme.shape", trap, tensors))


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, classifier_folder: Path) -> Night:
    root = tmp_path_factory.mktemp("night")
    write_lake(root / "in", root / "proof")
    words = (
        *("score", f"model.path={classifier_folder}", f"input.path={root}/in"),
        *(f"output.path={root}/out", f"input.max_split_bytes={LIMIT}"),
    )
    return Night(root / "in", root / "out", cli.main([*words]), words, root / "proof")


QUARANTINED = {
    "truncated.parquet": "magic bytes",
    "half.parquet": "magic bytes",
    "zero-bytes.parquet": "0 bytes",
    "corrupt-page.parquet": "",
    "bit-flip.parquet": "CRC",
    "wrong-type.parquet": "column 'text' is int64, expected string",
    "no-text.parquet": "no column 'text' (columns: body)",
    "doubled.parquet": "column names stand there twice: n",
    "deep.parquet": "too deeply nested",
    "bomb.parquet": f"input.max_split_bytes={LIMIT}",
    "zstd-bomb.parquet": f"input.max_split_bytes={LIMIT}",
    "tensor-trap.parquet": "",
}


def test_a_lake_with_bad_shards_ends_with_exit_code_3_and_names_each_and_no_other(
    night: Night,
) -> None:
    assert night.code == cli.QUARANTINED
    assert {bad["shard"] for bad in night.manifest["quarantined"]} == set(QUARANTINED)
    assert not (night.output / "_SUCCESS").exists()
    for name in QUARANTINED:
        assert not (night.output / name).exists()


@pytest.mark.parametrize("shard", QUARANTINED)
def test_a_bad_shard_is_quarantined_with_a_reason_to_act_on(night: Night, shard: str) -> None:
    reason = night.reason(shard)
    assert QUARANTINED[shard] in reason
    assert len(reason.split()) >= 3


def test_every_other_shard_has_a_twin_with_its_rows_columns_types_and_order(night: Night) -> None:
    shards = {str(path.relative_to(night.source)) for path in night.source.rglob("*.parquet")}
    good = shards - set(QUARANTINED) - {"_hidden/part.parquet"}
    scored = {str(path.relative_to(night.output)) for path in night.output.rglob("*.parquet")}
    assert scored == good
    for name in good - {"not-utf8.parquet", "other-not-utf8.parquet"}:
        before, after = night.before(name), night.after(name)
        assert after.column_names == [*before.column_names, *scored_column_names("")]
        assert after.select(before.column_names).equals(before), name
        assert after.schema.types[: before.num_columns] == before.schema.types


def test_a_text_that_is_not_utf8_keeps_its_row_and_says_so(night: Night) -> None:
    assert night.status("not-utf8.parquet") == [OK, NOT_UTF8, NOT_UTF8]
    after, before = night.after("not-utf8.parquet"), night.before("not-utf8.parquet")
    assert after["text"].cast(pa.binary()).equals(before["text"].cast(pa.binary()))
    assert after["id"].to_pylist() == [1, 2, 3]
    assert after["predicted_label"].null_count == 2


def test_bytes_that_are_not_utf8_in_another_column_pass_unchanged(night: Night) -> None:
    name = "other-not-utf8.parquet"
    assert night.status(name) == [OK]
    assert night.after(name)["raw"].cast(pa.binary()).to_pylist() == [b"\xff\xfe"]


def test_null_empty_and_blank_texts_keep_their_rows(night: Night) -> None:
    assert night.status("nothing.parquet") == [OK, NULL_TEXT, EMPTY_TEXT, EMPTY_TEXT]
    assert night.status("nulls-alone.parquet") == [NULL_TEXT, NULL_TEXT]


def test_nul_control_and_bidirectional_characters_are_texts_like_others(night: Night) -> None:
    assert night.status("odd.parquet") == [OK] * len(ODD_TEXTS)
    assert night.after("odd.parquet")["text"].to_pylist() == ODD_TEXTS


def test_a_text_of_50_mb_is_scored(night: Night) -> None:
    assert night.status("long.parquet") == [OK, OK]


@pytest.mark.parametrize("shard", ["no-rows.parquet", "no-row-groups.parquet"])
def test_a_shard_without_rows_has_a_twin_without_rows(night: Night, shard: str) -> None:
    after = night.after(shard)
    assert after.num_rows == 0
    assert after.column_names == ["text", "id", *scored_column_names("")]


def test_each_output_keeps_its_own_shards_schema_and_metadata(night: Night) -> None:
    assert night.after("ids-are-text.parquet").schema.field("id").type == pa.string()
    assert night.after("good.parquet").schema.field("id").type == pa.int64()
    assert "stars" in night.after("more-columns.parquet").column_names
    schema = night.after("types.parquet").schema
    assert schema.metadata[b"owner"] == b"them"
    assert schema.field("date").metadata[b"comment"] == b"theirs"
    assert schema.field("dictionary").type == every_type().schema.field("dictionary").type
    assert schema.field("string_view").type == pa.string_view()


def test_a_hive_folder_adds_no_column_and_odd_names_are_names(night: Night) -> None:
    for name in ("day=2026-11-24/part.parquet", "100% sure #1/grüße ☃ +&?.parquet"):
        assert night.after(name).column_names == ["text", "id", *scored_column_names("")]


def test_no_code_in_a_shards_metadata_or_values_is_run(night: Night) -> None:
    assert not night.proof.exists()
    unknown = night.after("unknown-type.parquet")
    assert unknown["x"].type == pa.list_(pa.int64())
    assert unknown.schema.field("x").metadata[b"ARROW:extension:name"] == b"acme.shape"
    # It is a trap: who unpickles it makes the folder.
    pickle.loads(pickle.dumps(Trap(night.proof)))
    assert night.proof.exists()
    night.proof.rmdir()


def test_a_rerun_ends_the_same_and_scores_nothing_twice(
    night: Night, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in night.output.rglob("*.parquet")}
    manifest = (night.output / "_manifest.json").read_bytes()
    assert cli.main([*night.words]) == cli.QUARANTINED
    assert {path: path.stat().st_mtime_ns for path in night.output.rglob("*.parquet")} == before
    assert (night.output / "_manifest.json").read_bytes() == manifest
    assert "quarantined: truncated.parquet: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("input.on_bad_shard=fail", "(input.on_bad_shard=fail)"),
        ("input.max_bad_share=0.1", "more than input.max_bad_share=0.1"),
    ],
)
def test_a_lake_that_is_too_bad_stops_the_run_before_it_begins(
    night: Night, capsys: pytest.CaptureFixture[str], word: str, wanted: str, tmp_path: Path
) -> None:
    words = [f"output.path={tmp_path}/out" if "output" in w else w for w in night.words]
    assert cli.main([*words, word]) == 2
    assert wanted in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_bad_row_stops_a_run_that_is_to_fail_on_it_and_nothing_of_its_split_is_written(
    tmp_path: Path, classifier_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": strings(b"good", b"\xff")}), tmp_path / "in/a.parquet")
    words = [f"model.path={classifier_folder}", f"input.path={tmp_path}/in"]
    words += [f"output.path={tmp_path}/out", "input.on_bad_row=fail"]
    assert cli.main(["score", *words]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert NOT_UTF8 in message
    assert "input.on_bad_row=fail" in message
    assert not (tmp_path / "out/a.parquet").exists()
