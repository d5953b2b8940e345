"""The page in a real browser: Debian's Chromium, driven by Playwright; axe-core looks at it too."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from axe_playwright_python.sync_playwright import Axe
from made_up import made_up_nights
from playwright.sync_api import Browser, Page, sync_playwright

from bertray.config import ReportConfig, load_config

ATTACK = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"
SCREENS = {"telephone": (390, 844), "desktop": (1280, 900)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        missing = "no Chromium to look at the page with: apt-get install chromium"
        assert "CI" not in os.environ, missing
        pytest.skip(missing)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def page_path(
    tmp_path_factory: pytest.TempPathFactory,
    classifier_folder: Path,
    score_here: Callable[..., None],
) -> Path:
    """A page with all its sections, from rows that would rather be code."""
    from bertray.report.run import report

    root = tmp_path_factory.mktemp("night")
    (root / "in").mkdir()
    texts = [f"{ATTACK} good film number {number}" * (number % 5 + 1) for number in range(60)]
    labels = [("bad", "so-so", "good")[number % 3] for number in range(60)]
    for part in range(2):
        table = pa.table({"text": [*texts, None], "label": [*labels, ATTACK]})
        pq.write_table(table, root / f"in/part-{part}.parquet")
    (root / "in/<img src=x onerror=alert(1)>.parquet").write_bytes(b"nothing")

    def predict(texts: list[str]) -> np.ndarray:
        return np.random.default_rng(0).dirichlet([2, 1, 3], len(texts))

    words = [f"model.path={classifier_folder}", f"input.path={root}/in", f"output.path={root}/out"]
    score_here(words, predict)
    metrics = {
        "model_digest": "another",
        "data": ATTACK,
        "rows_evaluated": 9,
        "metrics": {"accuracy": 0.5},
        "confusion": {"labels": [ATTACK, "good"], "rows": [[1, 2], [3, 3]]},
        "reliability": [{"rows": 9, "probability": 0.8, "right": 0.5}],
    }
    (root / "metrics.json").write_text(json.dumps(metrics))
    words = ["input.label=label", "explain.num_rows=1", f"input.evaluation={root}"]
    words.append(f"input.reference={root}/out")
    config = load_config(ReportConfig, None, [f"input.path={root}/out", *words])
    return Path(report(config, nights=made_up_nights(29)).page)


@pytest.fixture(scope="module")
def index_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that lists nights, one of whose labels would rather be code."""
    from bertray.report.page import render_index

    path = tmp_path_factory.mktemp("nights") / "index.html"
    path.write_text(render_index(made_up_nights(40, labels=("good", ATTACK)), place=ATTACK))
    return path


@pytest.fixture
def opened(
    browser: Browser, page_path: Path, index_path: Path, request: pytest.FixtureRequest
) -> Iterator[Page]:
    """A page on a screen, without a network."""
    which, screen, scheme = request.param
    path = {"night": page_path, "index": index_path}[which]
    width, height = SCREENS[screen]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    page.goto(path.as_uri())
    yield page
    context.close()


ALL = [
    ("night", "telephone", "light"),
    ("night", "desktop", "dark"),
    ("index", "telephone", "dark"),
    ("index", "desktop", "light"),
]


@pytest.mark.parametrize("opened", ALL, indirect=True, ids=" ".join)
def test_a_browser_shows_the_page_on_any_screen_and_runs_nothing_of_the_data(opened: Page) -> None:
    assert opened.title().startswith(("122 rows by ", "Nights of "))
    assert opened.locator("script, img").count() == 0
    assert "<script>document.title = 'taken'</script>" in opened.inner_text("main")
    wide, shown = opened.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= shown
    for chart in opened.locator("svg").all():
        box = chart.bounding_box()
        assert box is not None
        assert box["width"] > 200
        assert box["x"] + box["width"] <= shown


@pytest.mark.parametrize("opened", ALL, indirect=True, ids=" ".join)
def test_a_click_shows_the_figures_of_a_chart_of_nights(opened: Page) -> None:
    figure = opened.locator("figure", has=opened.get_by_role("heading", name="Label shares"))
    assert not figure.get_by_role("table").is_visible()
    figure.get_by_text("As a table").click()
    assert figure.get_by_role("row").count() == 31  # its head, and thirty nights


@pytest.mark.parametrize("opened", ALL, indirect=True, ids=" ".join)
def test_axe_finds_nothing_that_shuts_anybody_out(opened: Page) -> None:
    found = Axe().run(opened)
    assert found.violations_count == 0, found.generate_report()
