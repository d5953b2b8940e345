"""The recipes of docs/recipes.md hold together: config, rows, document."""

import io
import json
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
import recipe_data
import recipes
from recipe_data import RECIPES

from bertray.config import EvaluateConfig, TrainConfig, load_config
from bertray.schema import check_label_column, check_text_column
from bertray.train.targets import task_of

HERE = Path(__file__).parents[1]
TABLE = "Category\tText\nd\tstring\nclass\t\n" + "".join(
    f"{label}\ta {label} text {number}\n"
    for label in ("rec.sport.hockey", "earn", "")
    for number in range(20)
)
CODES = """<root><chapter><name>1</name><section><diag><name>A00</name><desc>Cholera</desc>
<diag><name>A00.0</name><desc>Cholera biovar</desc><inclusionTerm><note>Classical cholera</note>
<note>Old cholera</note></inclusionTerm></diag>
<diag><name>A00.1</name><desc>Cholera eltor</desc><inclusionTerm><note>Eltor</note></inclusionTerm>
</diag></diag></section></chapter></root>"""
MAIL = "\n".join(
    [
        "From somebody@example.org Thu Aug 22 2002",
        "Received: from example.org",
        "Subject: Buy now",
        "Content-Type: text/html",
        "",
        "<html><b>Cheap</b> &amp; good</html>",
    ]
)
CSV = "text,label,source\n" + "".join(
    f"a review {number},{number % 2},{source}\n"
    for source in ("imdb", "rotten_tomatoes")
    for number in range(20)
)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read of packages, in their format, with next to nothing in it."""
    texts = {"tab": TABLE, "csv": CSV, "xml": CODES}

    def packaged(_package: str, name: str) -> Path:
        path = tmp_path / name
        path.write_text(texts[name.rpartition(".")[2]])
        return path

    def fetched(name: str, _command: Sequence[str]) -> Path:
        mails = {
            f"package/data/{group}/{number}.json": json.dumps(
                {"group": group, "text": f"{MAIL} {number}"}
            )
            for group in ("spam-1", "easy-ham-1")
            for number in range(3)
        }
        ratings = {"h/tweets_GroundTruth.txt": "1\t2.5\tSo good\n2\t-1\tNot &amp; good\n"}
        inner = archive(tmp_path / "inner.tar.gz", ratings).read_bytes()
        holds = {"x/hutto_ICWSM_2014.tar.gz": inner} if "vader" in name else mails
        return archive(tmp_path / name, holds)

    monkeypatch.setattr(recipe_data, "packaged", packaged)
    monkeypatch.setattr(recipe_data, "fetched", fetched)


def archive(path: Path, contents: dict[str, str] | dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, content in contents.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_rows_have_the_columns_and_the_task_that_its_config_names(name: str) -> None:
    config = load_config(TrainConfig, recipes.HERE / f"{name}.yaml")
    for rows in RECIPES[name]():
        schema = pa.Table.from_pylist(list(rows)).schema
        columns = [config.data.text, config.data.text_pair]
        for column in filter(None, columns):
            check_text_column(schema, column, where=name, key="data.text")
        task = task_of(config.training.task, schema.field(config.data.label).type)
        check_label_column(schema, config.data.label, where=name, key="data.label", task=task)
        assert set(schema.names) == {*filter(None, columns), config.data.label}
    assert load_config(EvaluateConfig, None, recipes.evaluation(name)).data.label in schema.names


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_stays_in_its_folder_and_starts_from_what_is_there_by_then(name: str) -> None:
    config = load_config(TrainConfig, recipes.HERE / f"{name}.yaml")
    own = f".demo/recipes/{name}"
    assert (config.data.train, config.output.path) == (
        f"{own}/data/train.parquet",
        f"{own}/bundle",
    )
    earlier = list(RECIPES)[: list(RECIPES).index(name)]
    there = {f".demo/recipes/{one}/bundle" for one in earlier}
    there |= {".demo/recipes/model", ".demo/recipes/student"}
    assert {config.model.base, config.distillation.teacher or config.model.base} <= there


@pytest.mark.usefixtures("packages")
def test_mails_lose_the_headers_that_would_give_them_away() -> None:
    texts = sorted({str(row["text"]) for row in recipe_data.mails()})
    assert texts == ["Buy now Cheap & good 0", "Buy now Cheap & good 1", "Buy now Cheap & good 2"]


@pytest.mark.usefixtures("packages")
def test_no_title_of_a_pair_is_on_both_sides() -> None:
    titles = [row["title"] for row in recipe_data.icd_pairs()]
    assert len(titles) == 3
    assert titles.count("Cholera biovar") == 2
    assert titles[0] == titles[1] or titles[1] == titles[2]


def test_every_recipe_is_a_config_and_a_section_of_the_document() -> None:
    document = (HERE / "docs/recipes.md").read_text()
    assert {path.stem for path in recipes.HERE.glob("*.yaml")} == set(RECIPES)
    commands = re.findall(r"train configs/recipes/(\w+)\.yaml$", document, re.MULTILINE)
    lines = re.findall(r"^\| (\w+) \| [\d,]+ \|", document, re.MULTILINE)
    assert commands == lines == list(RECIPES)
