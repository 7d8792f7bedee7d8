import html
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import Browser, program
from PIL import Image
from sample_report import SHARE_LABELS, full_report, make_workdir, shares

from promptgen_jax.report.__main__ import main
from promptgen_jax.runs.report import markup, write_report
from promptgen_jax.store import images

HOSTILE = "<script>alert('x')</script>\"' onload=\"x\" & </style></title></p>"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("run"), full_report())


@pytest.fixture(scope="module")
def page(workdir):
    return write_report(workdir).read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Checks that tags balance, and collects attributes, texts and tag names."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text, self.targets = [], [], [], "", set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in markup.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += f"{data}|"


def visible(page):
    return Reader(page).text.replace("\u00a0", " ")


def test_is_self_contained_and_well_formed(page):
    reader = Reader(page)
    assert {"script", "link", "iframe", "object", "base"}.isdisjoint(reader.tags)
    for name, value in reader.attributes:
        if name in ("src", "href", "srcset", "data", "action", "poster", "background"):
            assert value.startswith(("#", "data:image/png;base64,"))
        assert not name.startswith("on")
        assert "url(" not in value
    style = re.search("<style>(.*)</style>", page, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    anchors = {value for name, value in reader.attributes if name == "id"}
    links = {value[1:] for name, value in reader.attributes if name == "href"}
    assert links == anchors
    assert len(anchors) == [name for name, _ in reader.attributes].count("id")


def test_every_given_number_is_shown(page):
    text = visible(page)
    expected = """20.3 88.1 % 2.31 0.247 nats 25.0 % 50.0 % 0.331 → 0.0179 0.301 0.352 0.0111 to 0.0262
        0.402 0.0243 4,096 1.73 17.1 1.18 to 2.22 21.6 6.93 21.4 to 21.8 25 0.210 0.198 1,231 30.1 % −1.862 −1.911 to
        −1.815 −1.853 −1.902 to −1.806 0.842 0.793 to 0.903 4.104 1.862 41.2 s 0:01:28 200 steps 6,400 2.26
        2026-11-22 04:31+00:00 0.10.2 0.12.8 3.25 12"""
    for number in expected.split():
        assert number in text, number
    for when in (shares(0), shares(1), shares(2), shares(3)):
        for share in when.values():
            for kind in ("soft", "hard"):
                assert f"{100 * share[kind]:.1f} %" in text
                low, high = (f"{100 * share[f'{kind}_{end}']:.1f} %" for end in ("low", "high"))
                assert f"{low} to {high}" in text


def strings(value):
    if isinstance(value, dict):
        return [text for child in value.values() for text in strings(child)]
    if isinstance(value, list):
        return [text for child in value for text in strings(child)]
    return [value] if isinstance(value, str) else []


def test_every_given_text_is_shown(page):
    text = visible(page)
    hidden = {"smile", "target_vs_samples", "density.npz", "samples.png", "faces.png", "wide.png", "photo.jpg"}
    hidden |= {"2026-11-22T04:31:07+00:00", "pixel_std", "lost"}
    for given in strings(full_report()):
        assert given in hidden or given in text, given


def test_pictures(page, workdir):
    text = visible(page)
    assert "gone.png: this picture is not in the run's folder." in text
    assert "broken.png: this file is not a picture" in text
    assert "has 1802 × 20 pixels" in text
    assert page.count("data:image/png;base64,") == 2 * 8 + 2
    assert page.count('class="tiny"') == 1
    assert "2 more" in text
    assert len(page) < 300_000


def test_reading_it_again_gives_the_same_page(workdir, page):
    assert write_report(workdir) == workdir / "report.html"
    assert (workdir / "report.html").read_text(encoding="utf-8") == page


PARTS = {
    "headline": "Energy",
    "images": "Same noise before and after.",
    "shares": "Who appears how often",
    "statistics": "Measured attributes",
    "diversity": "Diversity",
    "exactness": "Certificate",
    "notes": "Notes",
    "licenses": "Licences",
    "summary": "expression classifier",
    "timing": "of compilation",
}


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_left_out(workdir, tmp_path, part, page):
    report = full_report()
    del report["stages"][0][part]
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "report.json").write_text(json.dumps(report))
    text = visible(write_report(tmp_path).read_text())
    assert PARTS[part] in visible(page)
    assert PARTS[part] not in text
    for other, words in PARTS.items():
        assert other == part or words in text


def test_the_least_report(tmp_path):
    (tmp_path / "report.json").write_text('{"title": "Nothing yet", "stages": [{"name": "one"}]}')
    reader = Reader(write_report(tmp_path).read_text())
    assert "Nothing yet|Contents|one|Nothing yet|one|" in reader.text
    assert {"table", "svg", "img", "h3", "details", "pre"}.isdisjoint(reader.tags)


def everywhere(value, text):
    """The same structure with every string replaced, class and package names that are keys too."""
    if isinstance(value, dict):
        return {
            text if key in (*SHARE_LABELS, "jax") else key: child
            if key in ("file", "folder")
            else everywhere(child, text)
            for key, child in value.items()
        }
    if isinstance(value, list):
        return [everywhere(child, text) for child in value]
    return text if isinstance(value, str) else value


def test_hostile_strings_are_escaped(workdir, tmp_path, page):
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "report.json").write_text(json.dumps(everywhere(full_report(), HOSTILE)))
    (tmp_path / "config.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    metrics = [{"step": step, f"energy/{HOSTILE}": step} for step in (1, 2, 3)]
    (tmp_path / "smile" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    hostile = write_report(tmp_path).read_text()
    reader = Reader(hostile)
    assert set(reader.tags) <= set(Reader(page).tags)
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert "<script" not in hostile
    assert html.escape(HOSTILE) in hostile


def verdicts(page):
    return re.findall(r'class="verdict (\w+)">([^<]+)<', page)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, [("fair", "fair"), ("good", "agree"), ("fair", "fair")]),
        ({"ess": 4000, "kl": 0.02}, [("good", "good"), ("good", "agree"), ("good", "good")]),
        ({"ess": 12.0, "kl": 9.0}, [("bad", "poor"), ("good", "agree"), ("bad", "poor")]),
        ({"log_z": -3.0, "log_z_high": -2.9}, [("fair", "fair"), ("bad", "disagree"), ("fair", "fair")]),
        (
            {"log_z": -1, "log_z_low": -1.1},
            [("fair", "fair"), ("fair", "second estimate too weak"), ("fair", "fair")],
        ),
        ({"log_z_reference": None, "kl": None, "ess": math.nan}, []),
    ],
    ids=["as-is", "good", "poor", "mode-lost", "weak-reference", "not-known"],
)
def test_certificate_verdicts(workdir, tmp_path, change, expected):
    report = full_report()
    report["stages"][0]["exactness"].update(change)
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert verdicts(write_report(tmp_path).read_text()) == expected


def test_a_lost_mode_is_put_in_words(tmp_path):
    report = full_report()
    report["stages"][0]["exactness"] = {"log_z": -1.5, "log_z_reference": -1.5 + math.log(2)}
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert "about 50.0 % of the target seems to be missed" in visible(write_report(tmp_path).read_text())


@pytest.mark.parametrize(
    ("files", "match"),
    [
        (None, "no such folder"),
        ({}, "holds no report.json"),
        ({"report.json": "{"}, "report.json: not valid JSON"),
        ({"report.json": "[]"}, "report.json: holds no JSON object. Run again"),
        ({"report.json": '{"stages": []}'}, "report.json: title is missing. Run again"),
        ({"report.json": '{"title": "a", "stages": [{}]}'}, "report.json: stages.0.name is missing"),
        ({"report.json": '{"title": "a"}', "config.json": "nope"}, "config.json: not valid JSON"),
        (
            {"report.json": '{"title": "a", "stages": [{"name": "b"}]}', "metrics.jsonl": "x\n"},
            "metrics.jsonl, line 1",
        ),
    ],
    ids=["no-folder", "no-report", "not-json", "list", "no-title", "no-name", "config", "metrics"],
)
def test_command_answers_in_one_sentence(tmp_path, capsys, files, match):
    workdir = tmp_path / "run"
    if files is not None:
        workdir.mkdir()
        for name, content in files.items():
            (workdir / name).write_text(content)
    assert main([str(workdir)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert match in err
    assert err.count("\n") == 1
    assert not (workdir / "report.html").exists()


def test_command_prints_the_path(workdir):
    command = [sys.executable, "-m", "promptgen_jax.report", str(workdir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout == f"{workdir / 'report.html'}\n"
    assert done.stderr == ""


# In a browser, under the policy of the page itself; what looks inside comes over the protocol.
LOOK = """(() => {
  const found = [...document.images];
  const wide = [...document.querySelectorAll('html, .scroll')].filter(one => one.scrollWidth > one.clientWidth);
  const requests = performance.getEntriesByType('resource').map(entry => entry.name);
  return {
    images: found.length, decoded: found.filter(image => image.naturalWidth > 0).length,
    requests: requests.filter(name => !name.startsWith('data:')),
    sideways: wide.map(one => one.outerHTML.slice(0, 200)),
    styled: getComputedStyle(document.querySelector('rect.after')).fill,
    wide: [...document.querySelectorAll('svg[role=img]')].map(svg => svg.getBoundingClientRect().width),
    charts: [...document.querySelectorAll('svg[role=img]')].map(svg => svg.getBoundingClientRect().height),
    pair: [...document.querySelectorAll('.pair img')].slice(0, 2).map(image => image.getBoundingClientRect().toJSON()),
  };
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if program() is None:
        pytest.skip("no chromium or google-chrome on PATH, so the page was not opened in a browser")
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_in_a_browser_on_a_phone(workdir, page, browser):
    browser.size(360, 800)
    browser.open(f"file://{workdir / 'report.html'}")
    result = browser.run(LOOK)
    assert result["images"] == 18
    assert result["decoded"] == 18
    assert result["requests"] == []
    assert result["styled"] == "rgb(47, 95, 208)"
    assert len(result["charts"]) == 7
    assert min(result["charts"]) > 40
    assert result["sideways"] == []  # neither the page nor a table in it
    before, after = result["pair"]
    assert before["y"] == after["y"]
    assert before["width"] == pytest.approx(after["width"], abs=0.1)
    assert after["width"] > 130
    assert after["x"] + after["width"] <= 360


@pytest.mark.parametrize("width", [400, 700, 1024, 1100, 1400, 2000])
def test_nothing_is_out_of_sight(width, workdir, page, browser):
    """No table has to be pushed sideways, and charts are as wide as there is room for them."""
    browser.size(width, 900)
    browser.open(f"file://{workdir / 'report.html'}")
    found = browser.run(LOOK)
    assert found["sideways"] == []
    assert min(found["wide"]) >= min(300, width - 100)


def test_a_pair_can_be_compared_in_place(workdir, page, browser):
    """Pointed at or tapped, the picture after gives its place to the one before."""
    browser.size(1400, 900)
    browser.open(f"file://{workdir / 'report.html'}")
    places = "[...document.querySelectorAll('.pair img')].slice(0, 2).map(image => image.getBoundingClientRect().x)"
    before, after = browser.run(places)
    assert before < after
    browser.run("document.querySelector('.pair .after').focus()")
    moved, stays = browser.run(places)
    assert stays == after
    assert moved == pytest.approx(after, abs=1)


def test_without_readable_faces_there_is_the_sheet(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    for damaged in (b"no picture", images.png_bytes(np.zeros((15, 32, 3), np.uint8))):
        (tmp_path / "smile" / "faces.png").write_bytes(damaged)
        text = write_report(tmp_path).read_text()
        assert text.count("data:image/png;base64,") == 3
        assert 'class="pair"' not in text


def test_conditions_stand_in_blocks(workdir, tmp_path):
    report = full_report()
    labels = ["nod -20", "nod 0", "nod 20", "nod 40"]
    report["stages"][0]["images"][0]["faces"] = {"file": "faces.png", "rows": 4, "labels": labels, "columns": 2}
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    tiles = images.image_grid(np.zeros((16, 8, 8, 3), np.float32), columns=4, padding=0)
    images.save_png(tmp_path / "smile" / "faces.png", tiles)
    (tmp_path / "report.json").write_text(json.dumps(report))
    text = write_report(tmp_path).read_text()
    assert text.count('class="block" style="--columns:2"') == 4
    assert text.count('alt="noise 3, nod 40"') == 1


def test_screenshot_is_not_blank(workdir, page, browser, tmp_path):
    browser.size(1200, 2400)
    browser.open(f"file://{workdir / 'report.html'}")
    browser.screenshot(tmp_path / "shot.png", whole=False)
    shot = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB"))
    assert shot.shape == (2400, 1200, 3)
    assert len(np.unique(shot.reshape(-1, 3), axis=0)) > 500
    rows_with_ink = (shot.max(axis=(1, 2)).astype(int) - shot.min(axis=(1, 2)) > 100).mean()
    assert rows_with_ink > 0.3
