"""Folders of strangers that lead elsewhere, run code, or bring live markup: read within themselves, or refused."""

import io
import json
import os
from pathlib import Path

import jax
import pytest
from limits import RUN, STAGE, a_generator, bounded, tell

import promptgen_jax as pg
from promptgen_jax.models import pretrained
from promptgen_jax.runs import finished, leftovers, report
from promptgen_jax.store import disk, logs


@pytest.mark.parametrize("how", ["outside", "absolute", "link", "pipe", "device", "folder", "loop", "missing", "bomb"])
def test_pictures_of_a_report_are_files_of_its_run(how, tmp_path):
    secret, run = tmp_path / "secret.png", tmp_path / "run" / "a"
    run.mkdir(parents=True)
    secret.write_bytes(picture(8))
    file = {"outside": "../../secret.png", "absolute": str(secret), "device": "/dev/zero"}.get(how, "p.png")
    if how == "link":
        (run / "p.png").symlink_to(secret)
    elif how == "pipe":
        os.mkfifo(run / "p.png")
    elif how == "folder":
        (run / "p.png").mkdir()
    elif how == "loop":
        (run / "p.png").symlink_to(run / "p.png")
    elif how == "bomb":
        (run / "p.png").write_bytes(picture(7000))
    stage = {"name": "a", "folder": "a", "images": [{"file": file}]}
    (tmp_path / "run" / "report.json").write_text(json.dumps({"title": "t", "stages": [stage]}))
    with bounded(0):
        page = report.write_report(tmp_path / "run").read_text()
    assert "<img" not in page
    assert "this picture is not in" in page or "not a picture that can be shown" in page


def picture(size):
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.new("1", (size, size)).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize("name", ["run\0", "C:\\runs\\x", "~nobody-has-this-name/x"])
def test_paths_that_this_machine_does_not_have_are_refused(name):
    with pytest.raises(ValueError, match="no path can have|a path of Windows|no such home folder"):
        disk.open_folder("workdir", name)


@pytest.mark.parametrize("make", [os.mkdir, lambda path: os.symlink(path, path)], ids=["folder", "loop"])
def test_something_in_the_place_of_a_lock_is_named(make, tmp_path):
    make(tmp_path / ".lock")
    with pytest.raises(OSError, match=r"\.lock: cannot be locked"), disk.locked("workdir", tmp_path):
        pass


@pytest.mark.parametrize("folder", ["..", "../..", "/etc", "\0"])
def test_stages_of_a_report_lie_in_its_run(folder, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"title": "t", "stages": [{"name": "a", "folder": folder}]}))
    assert tell(report.write_report, tmp_path, named="not in")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "name",
    ["../victim", "/tmp/victim", ".", "..", "", ".a", "a/b", "a\n", "a ", "a\0", "\u202ea", "CON", "lpt1", "x" * 300],
)
def test_stage_names_are_plain_names(name, tmp_path):
    config = RUN | {"stages": {name: STAGE, "last": STAGE}, "order": [name, "last"]}
    (tmp_path / "config.json").write_text(json.dumps(config | {"mixtures": {}}))
    assert "cannot be the name of a stage" in tell(finished.read_config, tmp_path, named="config.json")


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "vocab.json", "README.md"])
def test_a_pipe_in_a_folder_of_transformers_is_not_waited_for(name, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: no regular file"):
        pretrained.read(tmp_path)


def test_a_pipe_among_the_logs_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / logs.METRICS)
    with pytest.raises(ValueError, match="metrics.jsonl: no regular file"):
        logs.MetricLogger(tmp_path, total_steps=1)


def test_what_links_of_a_run_lead_to_is_not_cleaned(tmp_path):
    run, victim = tmp_path / "run", tmp_path / "victim"
    (victim / "checkpoints").mkdir(parents=True)
    (victim / "prompt").mkdir()
    (victim / "prompt" / "prompt.json").write_text("{}")
    run.mkdir()
    (run / "config.json").write_text(json.dumps(RUN | {"stages": {"a": STAGE, "b": STAGE}, "order": ["a", "b"]}))
    (run / "a").symlink_to(victim)
    (run / "b" / "prompt").mkdir(parents=True)
    (run / "b" / "prompt" / "prompt.json").write_text("{}")
    (run / "b" / "checkpoints").symlink_to(victim)
    (run / "b" / "tensorboard").mkdir()
    assert list(leftovers.spare(run)) == [run / "b" / "tensorboard"]


def test_code_in_the_folder_of_a_run_is_not_run(tmp_path, monkeypatch):
    """As a name of one's own metric could make it, where the folder lies within a place that modules come from."""
    run = tmp_path / "place" / "stranger"
    (run / "a" / "prompt").mkdir(parents=True)
    (run / "a" / "prompt" / "prompt.json").write_text("{}")
    (run / "evil.py").write_text("raise SystemExit('executed')")
    evaluation = {"num_samples": 8, "metrics": ["stranger.evil"]}
    (run / "config.json").write_text(json.dumps(RUN | {"evaluation": evaluation, "mixtures": {}}))
    monkeypatch.syspath_prepend(str(tmp_path / "place"))
    assert "whose code would run" in tell(finished.read_config, run)


def test_a_card_has_no_live_markdown_of_others(tmp_path):
    """Not of names, licences, texts, nor of notes that a file has brought."""
    markdown = pytest.importorskip(
        "markdown_it", reason="markdown-it, which reads cards as sites do, is not installed"
    ).MarkdownIt("gfm-like", {"linkify": False, "html": True})
    bad = "x | ![i](http://a.b/c) <img src=x> [l](http://a.b) `c` **b** https://a.b\n\n# h\n\n[r]: http://a.b\n\n[r]"
    generator = a_generator().replace(name=bad)
    flow, params = pg.init_flow(jax.random.key(0), generator.prior, architecture="coupling", num_layers=2, hidden_dim=2)
    prompt = pg.Prompt(generator, flow, params, name=bad, notes=((bad, "fine"), ("Title", bad)))
    prompt.save(tmp_path / "p")
    text = (tmp_path / "p" / "README.md").read_text()
    _, _, body = text.partition("\n---\n")
    kinds = {token.type for block in markdown.parse(body) for token in [block, *(block.children or [])]}
    assert not kinds & {"link_open", "image", "html_inline", "html_block"}


def test_disk_reads_regular_files_only(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="no regular file"):
            disk.read_bytes(path, 100)
    (tmp_path / "large").write_bytes(bytes(101))
    with pytest.raises(ValueError, match="at most 100"):
        disk.read_bytes(tmp_path / "large", 100)
