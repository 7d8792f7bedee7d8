"""What a page says of where it was made."""

import subprocess

from promptgen_jax import __version__
from promptgen_jax.runs import origin
from promptgen_jax.store import home


def test_version_commit_and_processor_are_told():
    told = origin.how("main.py --mode=train")
    assert told["command"] == "main.py --mode=train"
    assert told["versions"]["promptgen_jax"] == __version__
    assert origin.processor() in told["hardware"]
    assert "cores" in told["hardware"]


def test_the_commit_is_that_of_a_clone_alone(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for name in ("configs", "convert", "promptgen_jax"):
        (tmp_path / name).mkdir()
    (tmp_path / "main.py").write_text("one")
    monkeypatch.setattr(home, "PACKAGE", tmp_path / "promptgen_jax")
    assert origin.commit() == ""  # a folder without its history
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True, timeout=60)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True, timeout=60).stdout
    assert origin.commit() == head[:12]
    (tmp_path / "main.py").write_text("two")
    assert origin.commit() == f"{head[:12]} with changes"
    monkeypatch.setattr(home, "PACKAGE", tmp_path / "site" / "promptgen_jax")  # installed
    assert origin.commit() == ""
