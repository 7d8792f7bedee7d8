"""Every large generator from the command line: two steps of its experiment, resumed, with the memory of a step said.

The generators are converted from official files, reduced ones under the published names and one of published size; the
samplers of the diffusion autoencoder take few steps, and CLIP is small.
"""

import io
import json
import re
import signal
import sys

import numpy as np
import official_biggan
import official_clip
import official_diffae
import official_nvae
import official_stylenerf
import pytest

import main
from promptgen_jax.store import weights

pytestmark = official_clip.ALLOWED
FLOW = {"num_layers": 2, "hidden_dim": 16}
EXPERIMENTS = {
    "biggan_deep_256": (official_biggan, "configs/biggan_text.py:robot_smoke", {}),
    "diffae_ffhq128": (official_diffae, "configs/diffae_text.py:baby_smoke", {"latent_steps": 2, "image_steps": 1}),
    "nvae_celeba64": (official_nvae, "configs/nvae_text.py:baby_smoke", {}),
    "stylenerf_ffhq256": (official_stylenerf, "configs/stylenerf_text.py:baby_smoke", {}),
}


class StopsWhenCompiled(io.StringIO):
    """Standard output of a process that gets SIGTERM once the training step is compiled."""

    def write(self, text):
        if "compiled the training step" in text:
            signal.raise_signal(signal.SIGTERM)
        return super().write(text)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder of a small CLIP."""
    folder = tmp_path_factory.mktemp("clip")
    source = official_clip.write_archive(folder / "small.pt", official_clip.small_state())
    return official_clip.convert(source, folder / "clip_small")


@pytest.mark.full
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_trains_and_resumes(name, clip, tmp_path, monkeypatch, capsys):
    """Two steps; and again stopped after the first and resumed, with the same flow."""
    official, config, options = EXPERIMENTS[name]
    published = name == "stylenerf_ffhq256"
    weights.save_weights(tmp_path / name, *(official.converted(name) if published else official.converted()))
    monkeypatch.setenv("PROMPTGEN_WEIGHTS", str(tmp_path))
    run, flow = tmp_path / "run", {f"stages.text.flow.{option}": value for option, value in FLOW.items()}
    control = {"stages.text.controls.text.network": clip, "stages.text.controls.text.text": "a robot"}
    sampler = {f"{of}.{option}": options[option] for of in ("generator", "evaluation.pictures") for option in options}
    overrides = {"generator.name": name, **sampler, **control, **flow}
    overrides = [f"--config.{option}={value}" for option, value in overrides.items()]

    def arguments(workdir):
        return [f"--config={config}", f"--workdir={workdir}", *overrides]

    def train(workdir):
        assert main.main(arguments(workdir)) == 0
        return capsys.readouterr().out

    output = train(run)
    sizes = re.search(r"a step takes (\S+) MiB a device: (\S+) MiB of weights and state, (\S+) MiB of a", output)
    assert all(float(size) > 0 for size in sizes.groups())
    metrics = [json.loads(line) for line in (run / "text" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2]
    assert all(np.isfinite(list(row.values())).all() for row in metrics)
    flows = sorted((run / "text" / "prompt").glob("flow_*/weights.safetensors"))
    trained = [path.read_bytes() for path in flows]
    assert trained

    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", StopsWhenCompiled())
        assert main.main(arguments(cut)) == 130
    assert "resumed at step 1 of 2" in train(cut)
    assert [(cut / path.relative_to(run)).read_bytes() for path in flows] == trained
