"""The paper's text control from the command line, at full size: official files, converters, two training steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import official_clip
import pytest
import torch
from golden import seeded

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden"
LANDSCAPE = "stylegan2_landscape"
pytestmark = official_clip.ALLOWED


def call(program, *arguments, weights):
    command = [sys.executable, program, *map(str, arguments)]
    environment = os.environ | {"PROMPTGEN_WEIGHTS": str(weights)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def seeded_state(name):
    return seeded.seeded_state_dict(seeded.load_manifest(name, GOLDEN))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Weight folders that the converters made of seeded official files."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in seeded_state("stylegan2_256").items()}
    torch.save({"g_ema": tensors}, folder / "landscape.pt")
    call("convert/stylegan2_to_flax.py", folder / "landscape.pt", folder / "weights" / LANDSCAPE, weights=folder)
    official_clip.write_archive(folder / "ViT-B-32.pt", seeded_state("clip_vit_b32"))
    call("convert/clip_to_flax.py", folder / "ViT-B-32.pt", folder / "weights" / "clip_vit_b32", weights=folder)
    return folder / "weights"


@pytest.mark.full
def test_stylegan2_256_and_clip_vit_b32_train_and_resume(checkpoints, tmp_path):
    """Two steps of the official landscape recipe; and again stopped after the first and resumed, with the same flow."""
    config, cut = "--config=configs/stylegan2_text.py:autumn_smoke", tmp_path / "cut"
    output = call("main.py", config, f"--workdir={tmp_path}", weights=checkpoints)
    assert output.strip().endswith("report.html")
    metrics = [json.loads(line) for line in (tmp_path / "text" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2]
    assert all(np.isfinite(row["loss"]) for row in metrics)
    trained = (tmp_path / "text" / "prompt" / "flow_0" / "weights.safetensors").read_bytes()

    command = [sys.executable, "-u", "main.py", config, f"--workdir={cut}"]
    environment = os.environ | {"PROMPTGEN_WEIGHTS": str(checkpoints)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as stopped:
        for line in stopped.stdout:
            if "compiled the training step" in line:
                stopped.terminate()
    assert stopped.returncode == 130
    assert "resumed at step 1 of 2" in call("main.py", config, f"--workdir={cut}", weights=checkpoints)
    assert (cut / "text" / "prompt" / "flow_0" / "weights.safetensors").read_bytes() == trained

    call("main.py", "--mode=sample", f"--workdir={tmp_path}", "--num_samples=1", weights=checkpoints)
    assert len(list((tmp_path / "samples").glob("*.png"))) == 1
