"""The page to play with, clicked through in a browser."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, program
from helpers import some_prompt
from PIL import Image

import promptgen_jax as pg
from promptgen_jax.play.studio import MAX_PIXELS

gr = pytest.importorskip("gradio", reason="Gradio is not installed, so the page was not served")
page = pytest.importorskip("promptgen_jax.play.page", reason="Gradio is not installed, so the page was not served")

ROOT = Path(__file__).parents[2]
DIALS = {"turn": (-20, 20, "angle"), "smile": (0, 1, "strength")}
PICTURES = "[...document.querySelectorAll('.pair img')].map(image => image.src)"
COMMAND = "document.querySelector('#command .cm-content')?.innerText ?? ''"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address where `promptgen play` serves two prompts, and the file of what it prints."""
    folder, generator = tmp_path_factory.mktemp("served"), pg.load_generator("dcgan_digiface")
    dials = some_prompt(generator, "dials", cond_dim=2).replace(conditions=pg.Conditions.of(DIALS))
    dials.save(folder / "dials")
    some_prompt(generator, "plain").save(folder / "plain")
    with serving(folder, "dials", "plain") as found:
        yield found


@contextlib.contextmanager
def serving(folder, *names):
    """A server of saved prompts, until the end of the block."""
    prompts = [f"--prompt={name}" for name in names]
    command = [sys.executable, "-m", "promptgen_jax", "play", *prompts, "--port=0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    log = folder / "log"
    with log.open("w") as out, subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out) as server:
        end = time.monotonic() + 120
        while not (found := re.search(r"http://\S+", log.read_text())):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield found[0], log
        server.send_signal(signal.SIGINT)
        server.wait(30)


@pytest.fixture
def address(served):
    return served[0]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if program() is None:
        pytest.skip("no chromium or google-chrome on PATH, so the page was not opened in a browser")
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def set_number(browser, selector, value):
    """As typing does."""
    browser.run(
        f"""(() => {{ const input = document.querySelector({selector!r});
        Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(input, {value!r});
        const tell = kind => input.dispatchEvent(new Event(kind, {{bubbles: true}}));
        ['input', 'change', 'blur'].forEach(tell); }})()"""
    )


def changed(browser, shown):
    """The pictures once they are others."""
    browser.wait(f"({PICTURES})[1] !== {shown[1]!r}")
    return browser.run(PICTURES)


def wait_for_file(browser, folder, name):
    for _ in range(200):
        if (folder / name).exists():
            return folder / name
        browser.run("new Promise(done => setTimeout(done, 50))")
    raise AssertionError(f"{name} was not downloaded: {list(folder.iterdir())}")


@pytest.mark.full
def test_clicked_through(served, browser, tmp_path):
    address, log = served
    browser.size(1400, 1000)
    browser.downloads(tmp_path)
    browser.open(address)
    browser.wait("document.querySelectorAll('.pair').length === 8")
    # other noise, while the part of the page that shows the seed is closed; it is open long before it is used
    shown = browser.run(PICTURES)
    browser.run("document.querySelector('#fresh').click()")
    first = changed(browser, shown)
    assert first[0] != shown[0]
    browser.run("document.querySelector('#noise button').click()")
    browser.wait("document.querySelector('#number input[type=number]')")
    # a dial: the same noise, other pictures, and the command for them
    set_number(browser, "#dial_0 input[type=number]", "-12.5")
    turned = changed(browser, first)
    assert turned[0::2] == first[0::2]
    browser.wait(f"({COMMAND}).includes('--condition=-12.5,1')")
    # the other prompt, by the blend; half way there is no command but a program
    set_number(browser, "#blend input[type=number]", "0.5")
    blended = changed(browser, turned)
    browser.wait(f"({COMMAND}).includes('latents.npz')")
    set_number(browser, "#blend input[type=number]", "1")
    assert changed(browser, blended)[0] == first[0]
    browser.wait(f"({COMMAND}).includes('--prompt=plain')")
    # number and seed
    set_number(browser, "#number input[type=number]", "3")
    browser.wait("document.querySelectorAll('.pair').length === 3")
    set_number(browser, "#seed input", "7")
    changed(browser, browser.run(PICTURES))
    browser.wait(f"({COMMAND}).includes('--seed=7')")
    # downloads are of what is shown
    browser.run("document.querySelector('#png').click()")
    browser.run("document.querySelector('#npz').click()")
    with Image.open(wait_for_file(browser, tmp_path, "pictures.png")) as sheet:
        assert sheet.size[0] > 3 * 64
    with np.load(wait_for_file(browser, tmp_path, "latents.npz")) as saved:
        assert saved["z"].shape == (3, 100)
    # a face
    Image.fromarray(np.full((90, 70, 3), (200, 120, 90), np.uint8)).save(tmp_path / "mine.png")
    browser.run("document.querySelector('#own button').click()")
    browser.wait("document.querySelector('#own input[type=file]')")
    browser.files("#own input[type=file]", tmp_path / "mine.png")
    browser.wait("document.querySelector('#own img')")
    browser.run("document.querySelector('#find').click()")
    browser.wait("document.querySelector('.pair figcaption').innerText === 'your face'", 120)
    assert "away in pixels" in browser.run("document.querySelector('#found').innerText")
    # of which another visitor knows nothing
    client = pytest.importorskip("gradio_client", reason="Gradio is not installed, so the page was not called").Client(
        address, verbose=False
    )
    assert "your face" not in client.predict(0, 2, 1.0, 0.0, 0.0, 1.0, api_name="/draw")[0]
    assert browser.errors == []
    browser.run("document.querySelector('#forget').click()")
    browser.wait("document.querySelector('.pair figcaption').innerText === 'before'")
    assert "Traceback" not in log.read_text()


@pytest.mark.full
@pytest.mark.parametrize(("width", "across"), [(1400, 2), (400, 1)])
def test_pairs_are_large_at_any_width(address, browser, width, across):
    browser.size(width, 900)
    browser.open(address)
    browser.wait("document.querySelectorAll('.pair').length === 8")
    assert browser.run("document.documentElement.scrollWidth") <= width
    places = browser.run(
        "[...document.querySelectorAll('.pair img')].map(image => image.getBoundingClientRect().toJSON())"
    )
    rows = {round(place["y"]) for place in places}
    assert len(rows) == 8 // across
    assert min(place["width"] for place in places) > 140
    assert min(rows) < 620  # some are seen before any scrolling
    outside = browser.run("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in outside if not name.startswith((address, "data:", "blob:"))] == []


@pytest.mark.full
@pytest.mark.parametrize(
    ("values", "match"),
    [
        ((0, 1000, 1.0, 0.0, 0.0, 1.0), "1000"),
        ((2**40, 2, 1.0, 0.0, 0.0, 1.0), "maximum"),
        ((0, 2, 1.0, 0.0, 99.0, 1.0), "99"),
        ((0, 2, "x", 0.0, 0.0, 1.0), ""),
    ],
)
def test_out_of_range_is_refused_whoever_asks(address, values, match):
    client = pytest.importorskip("gradio_client", reason="Gradio is not installed, so the page was not called").Client(
        address, verbose=False
    )
    with pytest.raises(Exception, match=re.compile(match, re.IGNORECASE)) as raised:
        client.predict(*values, api_name="/draw")
    assert "Traceback" not in str(raised.value)


@pytest.mark.full
def test_a_sentence_is_typed(browser, tmp_path):
    """Enter shows it; a word that nobody knows is told."""
    conditions = pg.Sentences.embedded(["a smiling man", "a woman"], network="tinyclip_faces")
    prompt = some_prompt(pg.load_generator("dcgan_digiface"), cond_dim=128).replace(conditions=conditions)
    prompt.save(tmp_path / "said")
    with serving(tmp_path, "said") as (address, _):
        browser.open(address)
        browser.wait("document.querySelectorAll('.pair').length === 8")
        first = browser.run(PICTURES)
        browser.run(
            """(() => { const box = document.querySelector('#text_0 textarea, #text_0 input');
            Object.getOwnPropertyDescriptor(Object.getPrototypeOf(box), 'value').set.call(box, 'a woman with a hat');
            box.dispatchEvent(new Event('input', {bubbles: true}));
            box.dispatchEvent(new KeyboardEvent('keypress', {key: 'Enter', bubbles: true, cancelable: true})); })()"""
        )
        assert changed(browser, first)[0] == first[0]
        browser.wait(f"({COMMAND}).includes('text=a woman with a hat')")
        browser.wait("document.body.innerText.includes('they mean nothing here: hat')")


@pytest.mark.full
def test_only_this_machine_is_listened_to(address):
    assert address.startswith("http://127.0.0.1:")


def test_a_port_that_is_none_is_told():
    with pytest.raises(ValueError, match="play: port is 99999; expected a number from 0 to 65535"):
        page.serve(None, port=99999)


@pytest.mark.full
def test_a_port_that_is_taken_is_told(served, tmp_path):
    address, _ = served
    some_prompt(pg.load_generator("dcgan_digiface")).save(tmp_path / "some")
    command = [sys.executable, "-m", "promptgen_jax", "play", f"--prompt={tmp_path / 'some'}"]
    port = address.rstrip("/").rpartition(":")[2]
    done = subprocess.run([*command, f"--port={port}"], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 2
    assert f"error: play: cannot listen on 127.0.0.1, port {port}: it is taken" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_page_that_was_left_while_it_drew_is_told_to_nobody():
    """Its folder is gone with it, and the server prints no traceback."""
    with pytest.raises(gr.Error) as told, page._told():
        raise FileNotFoundError("pictures.png: cannot be written")
    assert not told.value.print_exception


def test_a_picture_that_is_none_or_huge_is_refused(tmp_path):
    (tmp_path / "none.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="not a picture that can be read"):
        page.read(tmp_path / "none.png")
    Image.new("1", (10_000, MAX_PIXELS // 10_000 + 1)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match="more than 50,000,000 pixels"):
        page.read(tmp_path / "huge.png")
