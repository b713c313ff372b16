"""The report in a browser: headless Chromium, one for all tests."""

import json
import math
import os
import shutil
import sys
import time
from importlib.util import find_spec

import pytest

import analysis
from analysis import report
from analysis.figures import NotEnough
from analysis.logs import curves

EVIL = "<img src=x onerror=window.caught=1><b>"  # plotly would show the first and obey the second
WORSE = "</script><script>window.caught=1</script><!--<script>\"'&lt;"


@pytest.fixture(scope="module")
def browser():
    """Chromium, whose every word on the console is kept."""
    absent = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    absent += [name for name in ("selenium", "plotly") if not find_spec(name)]
    if absent:
        assert "RECALLBENCH_CI" not in os.environ, f"CI must open the report in a browser: no {', '.join(absent)}"
        pytest.skip(f"{', '.join(absent)} not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--window-size=1366,1000", "--proxy-server=127.0.0.1:9"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


class Page:
    """An open report, and what its reader does."""

    def __init__(self, browser, file):
        self.browser, self.points = browser, {}
        browser.get_log("browser")  # what an earlier page said
        browser.get(file.as_uri())

    def js(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def set(self, control, value):
        self.js(
            """const control = document.getElementById(arguments[0]);
            control[control.type === "checkbox" ? "checked" : "value"] = arguments[1];
            control.dispatchEvent(new Event("change", { bubbles: true }));""",
            control,
            value,
        )

    def family(self, name):
        self.js("document.querySelector(`#families input[value='${arguments[0]}']`).click()", name)

    def text(self, selector):
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def table(self):
        """The table as its reader sees it: one dictionary a row, by the heads of the columns."""
        return self.js(
            """const texts = (row) => [...row.cells].map((cell) => cell.textContent);
            const [head, ...rows] = [...document.getElementById("table").rows].map(texts);
            return rows.map((row) => Object.fromEntries(row.map((text, i) => [head[i], text])));"""
        )

    def drawn(self):
        """The points that are drawn: [x, y], sorted."""
        return self.js(
            """const marks = document.getElementById("plot").data.filter((trace) => trace.customdata);
            const drawn = marks.flatMap((trace) => Array.from(trace.x, (x, i) => [x, trace.y[i]]));
            return drawn.sort((a, b) => a[0] - b[0] || a[1] - b[1]);"""
        )

    def axis(self, side):
        return self.js(f"return document.getElementById('plot')._fullLayout.{side}axis.type")

    def hover(self, x, y):
        """Move the mouse to a point of the plot."""
        from selenium.webdriver.common.action_chains import ActionChains

        at = self.js(
            """scrollTo(0, 0);
            const plot = document.getElementById("plot"), box = plot.getBoundingClientRect();
            const { xaxis, yaxis } = plot._fullLayout;
            const pixel = (axis, value) => axis._offset + axis.d2p(value);
            return [box.left + pixel(xaxis, arguments[0]), box.top + pixel(yaxis, arguments[1])].map(Math.round);""",
            float(x),
            float(y),
        )
        mouse = ActionChains(self.browser, duration=0)
        mouse.w3c_actions.pointer_action.move_to_location(*at)
        mouse.perform()
        end = time.monotonic() + 5
        while not self.text("#point-name") and time.monotonic() < end:
            time.sleep(0.02)


@pytest.fixture(scope="module")
def written(study, record, tmp_path_factory):
    """A study of two seeds, one family of it with logs, and a run whose every text is an attack."""
    root = tmp_path_factory.mktemp("report") / "runs"
    evil = record("based", 0.5, family=EVIL, state_bytes=700, **{EVIL: WORSE, "other": WORSE})
    failed = {**record("mamba", None, status="failed"), "reason": EVIL}
    for entry in [*study(seeds=2), evil, failed]:
        folder = root / entry["identity"]
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(entry))
        if entry["family"] == "attention":
            log = [
                {"epoch": e, "step": 10 * e, "train_loss": 1 / e, "validation_accuracy": 1 - 1 / e} for e in (1, 2, 3)
            ]
            (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    file = root.parent / "report.html"
    runs = analysis.load(root)
    report.write(runs, curves(root), file, title=f"quick {EVIL}")
    return runs, file


@pytest.fixture
def page(browser, written):
    """The report, just opened; at the end the console is still empty and nothing was fetched or caught."""
    page = Page(browser, written[1])
    yield page
    assert browser.get_log("browser") == []
    assert page.js("return performance.getEntriesByType('resource').map((entry) => entry.name)") == []
    assert page.js("return window.caught") is None


def pairs(points, quality="accuracy"):
    known = points[["state.bytes", quality]].dropna()
    return [[cost, pytest.approx(value, rel=1e-5)] for cost, value in sorted(known.to_numpy(float).tolist())]


def test_it_shows_the_points_and_the_frontier_of_analysis(page, written):
    runs, _ = written
    points = analysis.points(runs)
    assert page.drawn() == pairs(points)
    best = points[analysis.frontier(points)]
    on = [row for row in page.table() if row["frontier"] == "yes"]
    assert sorted(float(row["accuracy"]) for row in on) == pytest.approx(sorted(best["accuracy"]), rel=1e-3)
    assert f"{points['accuracy'].notna().sum()} points, {len(best)} on the frontier" in page.text("#status")
    assert page.axis("x") == "log"
    assert page.axis("y") == "linear"


def test_hovering_shows_runs_configuration_and_curve(page, written):
    runs, _ = written
    attention = analysis.at_best_learning_rate(runs).query("family == 'attention'")
    page.hover(attention["state.bytes"].iloc[0], attention["accuracy"].mean())
    assert page.text("#point-name") == "attention"
    panel = page.text("#point")
    assert all(identity in panel for identity in attention["identity"])
    assert "2 seeds" in panel
    assert "mixer.nameattention" in page.text("#point-settings")
    assert "train.epochs16" in page.text("#same-settings")
    curve = "return document.getElementById('curve').data.map((trace) => [trace.x, trace.y])"
    assert page.js(curve) == [[[1, 2, 3], [0, 0.5, pytest.approx(2 / 3, rel=1e-5)]]] * 2
    page.set("curve-metric", "train_loss")
    assert page.js(curve)[0][1] == [1, 0.5, pytest.approx(1 / 3, rel=1e-5)]


def test_filters(page, written):
    runs, _ = written
    all_points = analysis.points(runs)
    page.family("attention")
    page.family("based")
    left = all_points[~all_points["family"].isin(["attention", "based"])]
    assert page.drawn() == pairs(left)
    page.set("slice", "3")
    sliced = analysis.by_slice(analysis.at_best_learning_rate(runs)).query("num_kv_pairs == 16")
    means = sliced.groupby(["family", "point"])[["state.bytes", "accuracy"]].mean().reset_index()
    assert page.drawn() == pairs(means[~means["family"].isin(["attention", "based"])])
    assert "num_kv_pairs 16" in page.text("#status")


def test_axes_switch_and_scale(page, written):
    runs, _ = written
    best = analysis.at_best_learning_rate(runs)
    page.set("y", "loss")
    assert page.drawn() == pairs(best.groupby("point")[["state.bytes", "loss"]].mean(), "loss")
    assert "less loss" in page.text("#status")
    page.set("x-log", False)
    assert page.axis("x") == "linear"
    page.set("y-log", True)
    assert page.axis("y") == "log"
    page.set("x", "cost.seconds")
    assert {x for x, _ in page.drawn()} == {12.5}


def test_the_table_sorts(page):
    def numbers():
        return [float(row["accuracy"]) for row in page.table()]

    def sort(column):
        page.js("document.querySelector(`#table button[data-column='${arguments[0]}']`).click()", column)

    assert numbers() == sorted(numbers(), reverse=True)
    sort("y")
    assert numbers() == sorted(numbers())
    sort("label")
    names = [row["point"].split(",")[0] for row in page.table()]
    assert names == sorted(names, key=lambda name: (not name.startswith("<"), name.lower()))
    heads = page.js("return [...document.querySelectorAll('#table th')].map((head) => head.ariaSort)")
    assert heads.count("ascending") == 1
    assert heads.count("none") == len(heads) - 1


def test_the_keyboard_reaches_everything(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    page.js("document.getElementById('plot').focus()")
    ActionChains(page.browser, duration=0).send_keys(Keys.ARROW_RIGHT).perform()
    assert page.text("#point-name").startswith(EVIL.replace("_", " "))  # it has the smallest state
    page.js("document.querySelector('#table tbody button').focus()")
    ActionChains(page.browser, duration=0).send_keys(Keys.ENTER).perform()
    assert page.text("#point-name") == page.table()[0]["point"] == "attention"
    assert page.js("return document.querySelectorAll('#table tr[aria-selected=true]').length") == 1


def test_text_of_configurations_is_text(page, written):
    runs, _ = written
    evil = analysis.points(runs).query("family == @EVIL").iloc[0]
    page.hover(evil["state.bytes"], evil["accuracy"])
    assert EVIL in page.text("#point-name")
    assert WORSE in page.text("#point-settings")
    assert f"mixer.{EVIL}" in page.text("#point-settings")
    assert EVIL in page.text("title")
    tooltip = page.js("return document.querySelector('.hovertext').textContent")
    assert EVIL in tooltip
    images = page.js("return [...document.images].map((image) => image.src.slice(0, 5))")
    assert set(images) == {"data:"}
    assert page.js("return document.scripts.length") == 3


def test_records_without_logs_say_so(page, written):
    evil = analysis.points(written[0]).query("family == @EVIL").iloc[0]
    page.hover(evil["state.bytes"], evil["accuracy"])
    assert page.js("return document.getElementById('curve').hidden")
    assert not page.js("return document.getElementById('no-curve').hidden")


def test_thousands_of_points_are_drawn_by_webgl_and_the_table_stays_short(browser, record, write, tmp_path):
    records = [record("gla", (i % 97) / 97, state_bytes=512 + i, feature_dim=i) for i in range(1200)]
    runs = analysis.load(write(records))
    report.write(runs, curves([]), tmp_path / "many.html", title="many")
    page = Page(browser, tmp_path / "many.html")
    assert len(page.drawn()) == 1200
    assert page.js("return document.getElementById('plot').data[1].type") == "scattergl"
    assert len(page.table()) == 100
    page.js("document.getElementById('all-rows').click()")
    assert len(page.table()) == 1200


def test_one_task_is_looked_at_at_a_time(browser, record, write, tmp_path):
    mqar, hops = record("gla", 0.5), record("gla", 0.7, seed=1)
    hops["config"] |= {"task.name": "two_hop"}
    runs = analysis.load(write([mqar, hops]))
    report.write(runs, curves([]), tmp_path / "tasks.html", title="tasks")
    page = Page(browser, tmp_path / "tasks.html")
    assert page.drawn() == [[4096, 0.5]]
    page.set("task", "two_hop")
    assert page.drawn() == [[4096, 0.7]]
    assert page.text("#status").endswith("more accuracy; two_hop")


def test_equal_runs_give_an_equal_page_and_missing_numbers_are_null(written):
    runs, _ = written
    unknown = runs.assign(
        **{"cost.peak_memory_bytes": [1.0 if i % 2 else (math.nan, math.inf)[i % 4 // 2] for i in range(len(runs))]}
    )
    page = report.render(unknown, curves([]), title="a")
    assert page == report.render(unknown, curves([]), title="a")
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert set(data["runs"]["cost.peak_memory_bytes"]) == {None, 1}


def test_what_there_can_be_no_report_of_is_one_sentence(record, write, monkeypatch, tmp_path):
    failed = analysis.load(write([record("mamba", None, status="failed")]))
    with pytest.raises(NotEnough, match="no run is completed"):
        report.render(failed, curves([]), title="a")
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(report.NoPlotlyError, match="pip install"):
        report.write(analysis.load(write([record()])), curves([]), tmp_path / "report.html", title="a")
    assert not (tmp_path / "report.html").exists()


def test_curves_come_from_the_logs_beside_the_records(written, tmp_path):
    runs, file = written
    logged = curves(file.parent / "runs")
    assert set(logged["identity"]) == set(runs.loc[runs["family"] == "attention", "identity"])
    assert (
        logged.groupby("identity")["train_loss"].agg(list).tolist()
        == [[1, 1 / 2, 1 / 3]] * logged["identity"].nunique()
    )
    analysis.save(runs, tmp_path / "saved.parquet")
    assert curves(tmp_path / "saved.parquet").empty
    torn = tmp_path / "runs" / "torn"
    torn.mkdir(parents=True)
    (torn / "result.json").write_text("{}")
    (torn / "log.jsonl").write_text('{"epoch": 1')
    with pytest.raises(analysis.BrokenRecordError, match=str(torn / "log.jsonl")):
        curves(tmp_path / "runs")
