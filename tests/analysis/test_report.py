"""The report: its figures' numbers, its tables, what it refuses, and the page in a browser."""

from __future__ import annotations

import csv
import json
import re
import shutil
import time
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic_run import synthetic_run
from torchmetrics.functional.classification import multiclass_calibration_error

from lad_pl.analysis.report.ablations import ablation_section
from lad_pl.analysis.report.command import report
from lad_pl.analysis.report.gallery import choose
from lad_pl.analysis.report.profiles import (
    attention_shares,
    confusion_shares,
    found_when_wrong,
    layer_accuracy,
    mean_by_target,
    reliability,
)
from lad_pl.analysis.report.reported_run import read_run
from lad_pl.cli.commands import run_command
from lad_pl.errors import UserError
from lad_pl.evidence.store import read_prompts
from lad_pl.run.scoring import metrics_of

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\"quoted\" & 'single' <!-- comment -->",
    "صورة لقطة على الأريكة",
    "a 🐈 on a 🛋️, naïve 猫 \u2028 and {{ 7 * 7 }}",
)
FOLDER = "<b onclick=alert(3)> & $x_1$"
METHOD = "permutation_average"


def _records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def _rewrite(run: Path, edit: Callable[[int, dict[str, Any]], None]) -> None:
    path, records = run / "predictions.jsonl", _records(run)
    for number, record in enumerate(records):
        edit(number, record)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _make_hostile(run: Path) -> None:
    """Captions and names that try to be markup; one image is a file, one a scene of the demo, others are missing."""
    images = run / "photos"
    images.mkdir()
    Image.new("RGB", (300, 200), "teal").save(images / "a\"b'c<d>&.png")

    def edit(number: int, record: dict[str, Any]) -> None:
        record["caption"] = f"{HOSTILE[number // 5 % len(HOSTILE)]} #{number // 5}"
        record["images"][:3] = ["a\"b'c<d>&.png", "scene-2506-7575.png", "<img src=x onerror=alert(4)>.png"]
        if number == 7:
            record["choices"][METHOD] = None

    _rewrite(run, edit)
    path = run / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["images"] = str(images)
    chosen = [record["choices"][METHOD] for record in _records(run)]
    choices = torch.tensor([-1 if choice is None else choice for choice in chosen])
    metrics["readouts"] |= metrics_of({METHOD: choices}, read_prompts(run / "evidence.parquet"))
    path.write_text(json.dumps(metrics))


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / FOLDER
    path.mkdir()
    synthetic_run(path, layers=3, heads=2, samples=12, methods=(METHOD,), seed=3)
    _make_hostile(path)
    return path


@pytest.fixture(scope="module")
def page(hostile_run, tmp_path_factory) -> Path:
    other = tmp_path_factory.mktemp("other") / "eight"
    other.mkdir()
    report([hostile_run, synthetic_run(other, n=8, layers=3, heads=2, samples=6)])
    return hostile_run / "report" / "index.html"


def test_the_command_takes_runs_one_after_the_other(hostile_run, capsys):
    with pytest.raises(UserError, match="no run folder nowhere"):
        run_command("report", [str(hostile_run), "nowhere", "--gallery", "3"])
    with pytest.raises(ArgumentError, match="glalery"):
        run_command("report", [str(hostile_run), "--glalery", "3"])
    with pytest.raises(SystemExit):
        run_command("report", ["--help"])
    assert "--images" in capsys.readouterr().out


@pytest.fixture
def small_run(tmp_path) -> Path:
    return synthetic_run(tmp_path, layers=2, heads=2, samples=3, permutations=2, calibration_samples=2)


# ---------------------------------------------------------------------------------------------------------- numbers


def test_profiles_are_those_of_plain_loops():
    draw = np.random.default_rng(0)
    targets, choices = draw.integers(0, 4, 60), draw.integers(-1, 4, 60)
    values = draw.normal(size=(60, 4))
    means = mean_by_target(torch.tensor(values), torch.tensor(targets)).numpy()
    confusion = confusion_shares(torch.tensor(choices), torch.tensor(targets), 4).numpy()
    for i in range(4):
        np.testing.assert_allclose(means[i], values[targets == i].mean(0))
        np.testing.assert_allclose(confusion[i], [np.mean(choices[targets == i] == j) for j in range(4)])
    assert confusion.sum(1).min() < 1  # answers that could not be read belong to no position


def test_a_position_that_never_held_the_truth_has_no_profile():
    means = mean_by_target(torch.ones(2, 3), torch.tensor([0, 2]))
    assert means[1].isnan().all() and means[[0, 2]].eq(1).all()


def test_attention_is_read_where_it_looks_at_the_images():
    attention = torch.tensor([[[0.01, 0.09], [0.6, 0.2], [0.2, 0.2]]])
    torch.testing.assert_close(attention_shares(attention, 2), torch.tensor([[2 / 3, 1 / 3]]))
    assert layer_accuracy(attention, torch.tensor([0])).tolist() == [0, 1, 1]
    prior = torch.tensor([[0.01, 0.5], [0.9, 0.1], [0.1, 0.1]])
    assert layer_accuracy(attention, torch.tensor([0]), prior).tolist() == [1, 0, 1]


def test_found_when_wrong_counts_wrong_answers_alone():
    correct, attention = torch.tensor([1, 1, 0, 0, 0]).bool(), torch.tensor([1, 0, 1, 1, 0]).bool()
    assert found_when_wrong(correct, attention) == pytest.approx(2 / 3)


def test_the_calibration_error_is_torchmetrics():
    draw = torch.Generator().manual_seed(0)
    log_probs = (2 * torch.randn(500, 4, generator=draw)).double().log_softmax(-1)
    targets = torch.randint(4, (500,), generator=draw)
    curve = reliability(log_probs, targets)
    expected = multiclass_calibration_error(log_probs.exp(), targets, num_classes=4, n_bins=10)
    assert curve.error == pytest.approx(float(expected), abs=1e-6)
    assert curve.share.sum() == pytest.approx(1) and (curve.confidence.diff() > 0).all()


def test_the_gallery_takes_every_kind_in_turn():
    base = torch.tensor([[1, 1], [1, 0], [0, 0], [1, 1], [0, 0], [1, 1]]).bool()
    corrected = torch.tensor([[1, 1], [1, 1], [0, 0], [1, 0], [1, 1], [1, 1]]).bool()
    assert choose(base, corrected, 4) == [3, 1, 2, 0]  # broken, fixed, both wrong, both correct
    assert choose(base, corrected, 99) == [3, 1, 2, 0, 4, 5]


# ----------------------------------------------------------------------------------------------------------- tables


def test_files_lie_beside_the_page(page):
    folder = page.parent
    drawn = {path.stem for path in (folder / "figures").glob("*.svg")}
    assert drawn == {path.stem for path in (folder / "figures").glob("*.png")}
    assert drawn >= {"confusion", "profiles", "attention", "recall", "differences", "reliability", "accuracy_by_n"}
    with Image.open(folder / "figures" / "confusion.png") as image:
        assert image.width > 1000
    ElementTree.parse(folder / "figures" / "runs.svg")  # well-formed, whatever the folder is called
    for suffix in ("md", "csv", "tex"):
        assert {"results", "recall", "differences", "reliability", "runs"} <= {
            path.stem for path in (folder / "tables").glob(f"*.{suffix}")
        }


def test_the_results_table_holds_the_runs_metrics(page, hostile_run):
    metrics = json.loads((hostile_run / "metrics.json").read_text())["readouts"]
    with (page.parent / "tables" / "results.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == [*metrics]
    for name, values in metrics.items():
        for key in ("accuracy", "accuracy_std", "rstd", "consistency", "circular_accuracy"):
            assert float(rows[name][key]) == pytest.approx(values[key])
    assert float(rows[METHOD]["success_rate"]) == pytest.approx(59 / 60)
    assert float(rows[METHOD]["forwards"]) == 4


# -------------------------------------------------------------------------------------------------------- bad input


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        report([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="Run test"):
        report([tmp_path])
    with pytest.raises(UserError, match="Name a run folder"):
        report([])


@pytest.mark.parametrize(
    ("file", "message"),
    [("metrics.json", "not valid JSON"), ("evidence.parquet", "truncated"), ("predictions.jsonl", "cannot be read"),
     ("costs.json", "not valid JSON")],
)  # fmt: skip
def test_a_truncated_file_is_named(small_run, file, message):
    content = (small_run / file).read_bytes()
    (small_run / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=message) as caught:
        report([small_run])
    assert file in str(caught.value) and "\n" not in str(caught.value)


def test_files_of_other_prompts_are_refused(small_run):
    _rewrite(small_run, lambda number, record: record.update(id="other"))
    with pytest.raises(UserError, match="different prompts"):
        read_run(small_run)


def test_fewer_predictions_than_evidence_are_refused(small_run):
    path = small_run / "predictions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="5 prompts"):
        read_run(small_run)


def test_metrics_of_other_answers_are_refused(small_run):
    def wrong(number: int, record: dict[str, Any]) -> None:
        record["choices"]["agd"] = (record["target"] + 1) % 4

    _rewrite(small_run, wrong)
    with pytest.raises(UserError, match="different runs"):
        read_run(small_run)


def test_a_foreign_file_of_metrics_is_refused(small_run):
    (small_run / "metrics.json").write_text('{"accuracy": 1}')
    with pytest.raises(UserError, match="is not what test writes"):
        read_run(small_run)


def test_a_run_named_twice_is_refused(small_run):
    with pytest.raises(UserError, match="twice"):
        report([small_run, small_run / "."])


def test_runs_are_the_same_only_if_they_were_asked_the_same(small_run, tmp_path):
    mine = read_run(small_run)
    assert mine.same_prompts(read_run(small_run))
    _rewrite(small_run, lambda number, record: record.update(caption="another"))
    assert not mine.same_prompts(read_run(small_run))


# ---------------------------------------------------------------------------------------------------------- a sweep


def _write_sweep(run: Path, baseline: float) -> None:
    (run / "sweep").mkdir()
    (run / "sweep" / "readouts.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' onload='alert(5)'/>")
    header = (
        "readout,recipe,top_layers,temperature,layers,head_exponent,num_calibration,draw,"
        "accuracy,accuracy_std,rstd,consistency"
    )
    rows = [f"vanilla,,,,,,,,{baseline},0.1,0.3,0.5", *(f"agd,paper,2,{tau},all,,1,{draw},0.{tau}{draw},0.1,0.2,0.5"
            for tau in (5, 7) for draw in (0, 2))]  # fmt: skip
    (run / "sweep" / "sweep.csv").write_text("\n".join([header, *rows]))


def test_a_sweep_without_a_row_is_no_failure(small_run):
    _write_sweep(small_run, 0.5)
    path = small_run / "sweep" / "sweep.csv"
    path.write_text(path.read_text().splitlines()[0])
    (table,) = ablation_section(read_run(small_run)).tables
    assert list(table.rows) == []


def test_a_sweep_is_shown_draws_averaged_best_first(small_run):
    run = read_run(small_run)
    _write_sweep(small_run, run.metrics["vanilla"]["accuracy"])
    section = ablation_section(run)
    (table,), (picture,) = section.tables, section.pictures
    found = {(row["readout"], row["temperature"]): row["accuracy"] for row in table.records}
    assert found["agd", "7"] == pytest.approx(0.71) and found["agd", "5"] == pytest.approx(0.51)
    accuracies = [row["accuracy"] for row in table.records]
    assert accuracies == sorted(accuracies, reverse=True) and len(accuracies) == 3
    assert picture.uri.startswith("data:image/svg+xml;base64,")  # an image: what it holds cannot run


def test_a_sweep_of_other_results_is_left_out_and_a_damaged_one_refused(small_run):
    run = read_run(small_run)
    assert "No sweep yet" in ablation_section(run).notes[0]
    _write_sweep(small_run, 0.123)
    section = ablation_section(run)
    assert not section.pictures and "other results" in section.notes[0]
    (small_run / "sweep" / "sweep.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not what sweep writes"):
        ablation_section(run)


# ------------------------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="the browser tests need selenium")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("the browser tests need chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    switches = (
        "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-dev-shm-usage "
        f"disable-component-update disable-sync user-data-dir={tmp_path_factory.mktemp('browser')}"
    )
    for switch in switches.split():
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.set_window_size(1200, 900)
        driver.get(page.as_uri())
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def fresh(browser) -> Any:
    """The page without filters and without an open prompt."""
    browser.execute_script("document.getElementById('detail').close(); document.getElementById('reset').click();")
    _choose(browser, "method", "agd")
    return browser


def _choose(browser: Any, name: str, value: str) -> None:
    """Pick an option by its value, or by what it says."""
    browser.execute_script(
        "const [id, value] = arguments, select = document.getElementById(id);"
        "select.value = [...select.options].find((o) => o.value === value || o.text === value).value;"
        "select.dispatchEvent(new Event('change'));",
        name,
        value,
    )


def _count(browser: Any) -> int:
    return int(browser.execute_script("return document.getElementById('count').value").split()[0])


def _visible_cards(browser: Any) -> int:
    return browser.execute_script("return document.querySelectorAll('.card').length")


def test_the_page_loads_alone_and_without_complaint(browser, page):
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    asked = [request["request"]["url"] for request in requests if request["documentURL"] == page.as_uri()]
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]


def test_figures_are_drawn(browser):
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('section > figure svg.chart')].map((svg) => svg.getBBox().width)"
    )
    assert len(sizes) >= 7 and min(sizes) > 300
    words = browser.execute_script("return document.querySelector('#figure-confusion svg').textContent")
    assert "vanilla" in words and "agd" in words


def test_hostile_text_stays_text(browser, hostile_run):
    shown = browser.execute_script("return [...document.querySelectorAll('.card h3')].map((e) => e.textContent)")
    captions = {record["caption"] for record in _records(hostile_run)}
    assert set(shown) <= captions and any("</script>" in caption for caption in shown)
    assert browser.execute_script("return document.scripts.length") == 2
    assert (
        browser.execute_script("return document.querySelectorAll('[onclick], [onerror], img[src=x], main b').length")
        == 0
    )
    assert FOLDER in browser.execute_script("return document.title")
    names = browser.execute_script("return [...document.querySelectorAll('.card .absent')].map((e) => e.textContent)")
    assert "<img src=x onerror=alert(4)>.png" in names


def test_no_other_script_may_run(fresh):
    fresh.execute_script(
        "const added = document.createElement('script'); added.textContent = 'window.intruder = 1';"
        "document.body.append(added);"
    )
    assert fresh.execute_script("return window.intruder") is None
    assert any("Content Security Policy" in entry["message"] for entry in fresh.get_log("browser"))


def test_images_are_shown_and_missing_ones_are_counted(fresh):
    widths = fresh.execute_script(
        "const images = [...document.querySelectorAll('.card img')];"
        "return Promise.all(images.map((image) => image.decode().then(() => image.naturalWidth)))"
    )
    assert set(widths) == {160, 56}  # a photograph made small, and a scene of the demo
    assert re.match(r"13 of the images .* cannot be found", fresh.execute_script("return missing.textContent"))


@pytest.mark.parametrize("method", ["agd", "pride", METHOD])
@pytest.mark.parametrize(("base", "other"), [("wrong", "correct"), ("correct", "wrong"), ("wrong", "wrong")])
def test_outcomes_are_filtered(fresh, hostile_run, method, base, other):
    _choose(fresh, "method", method)
    _choose(fresh, "outcome", f"{base}-{other}")

    def outcome(record: dict[str, Any], name: str) -> str:
        return "correct" if record["choices"][name] == record["target"] else "wrong"

    expected = sum(
        (outcome(record, "vanilla"), outcome(record, method)) == (base, other) for record in _records(hostile_run)
    )
    assert _count(fresh) == expected
    assert _visible_cards(fresh) == min(expected, 24)
    said = fresh.execute_script("return document.getElementById('outcome').selectedOptions[0].text")
    assert said.endswith(f"({expected})")


def test_positions_and_words_are_filtered(fresh, hostile_run):
    records = _records(hostile_run)
    _choose(fresh, "target", "2")
    assert _count(fresh) == sum(record["target"] == 2 for record in records)
    _choose(fresh, "chosen", "position 1")
    assert _count(fresh) == sum(record["target"] == 2 and record["choices"]["vanilla"] == 0 for record in records)
    fresh.execute_script("document.getElementById('reset').click()")
    fresh.find_element("id", "words").send_keys("ALERT(2)")
    assert _count(fresh) == sum("alert(2)" in record["caption"] for record in records) > 0


def test_a_filter_that_nothing_fits_says_so(fresh):
    fresh.find_element("id", "words").send_keys("no caption has this")
    assert (_count(fresh), _visible_cards(fresh)) == (0, 0)
    assert fresh.find_element("id", "none").is_displayed()
    fresh.find_element("id", "reset").click()
    assert _count(fresh) == 60 and not fresh.find_element("id", "none").is_displayed()


def test_more_cards_come_on_demand(fresh):
    assert _visible_cards(fresh) == 24
    fresh.execute_script("more.click()")
    assert _visible_cards(fresh) == 48
    assert fresh.execute_script("return document.activeElement.dataset.place") == "24"


def test_the_keyboard_is_enough(fresh):
    from selenium.webdriver.common.keys import Keys

    def press(key: str) -> None:
        fresh.switch_to.active_element.send_keys(key)

    def place() -> str:
        return fresh.execute_script("return document.activeElement.dataset.place")

    def title() -> str:
        return fresh.execute_script("return document.querySelector('#detail .which').textContent")

    fresh.find_element("id", "words").send_keys(Keys.TAB)
    assert place() == "0"
    for key, expected in ((Keys.ARROW_RIGHT, "1"), (Keys.ARROW_DOWN, "3"), (Keys.ARROW_LEFT, "2"), (Keys.END, "23")):
        press(key)
        assert place() == expected
    press(Keys.ENTER)
    assert fresh.execute_script("return document.getElementById('detail').open") and title().startswith("24 of 60")
    press(Keys.ARROW_LEFT)
    assert title().startswith("23 of 60")
    press(Keys.ESCAPE)
    for _ in range(20):  # the dialog's close event comes when it comes
        if place() == "22":
            break
        time.sleep(0.05)
    assert not fresh.execute_script("return document.getElementById('detail').open") and place() == "22"


def test_a_prompt_in_full_names_every_methods_choice(fresh, hostile_run):
    fresh.execute_script("document.querySelector('.card').click()")
    where = fresh.execute_script("return document.querySelector('#detail .which').textContent")
    sample, order = re.search(r"sample (\S+), order (\d)", where).groups()
    record = [record for record in _records(hostile_run) if record["id"] == sample][int(order) - 1]
    chips = fresh.execute_script(
        "const chips = (tile) => [...tile.querySelectorAll('.chip')].map((chip) => chip.textContent);"
        "return [...document.querySelectorAll('#detail .tile')].map(chips)"
    )
    shown = {name: place for place, names in enumerate(chips) for name in names}
    assert shown == {name: choice for name, choice in record["choices"].items() if choice is not None}


def test_light_and_dark(fresh):
    def background() -> str:
        return fresh.execute_script("return getComputedStyle(document.body).backgroundColor")

    def ink() -> str:
        return fresh.execute_script("return getComputedStyle(document.querySelector('#figure-confusion text')).fill")

    def prefer(theme: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": theme}
        fresh.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    prefer("light")
    light = background(), ink()
    prefer("dark")
    dark = background(), ink()
    assert light[0] != dark[0] and light[1] != dark[1]
    for theme, expected in (("light", light), ("dark", dark), ("auto", dark)):
        fresh.execute_script("document.getElementById('theme').click()")
        assert fresh.find_element("id", "theme").text == f"theme: {theme}"
        assert (background(), ink()) == expected


def test_a_telephone_needs_no_sideways_scrolling(fresh):
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    fresh.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert fresh.execute_script("return document.documentElement.scrollWidth") <= 360
    finally:
        fresh.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
