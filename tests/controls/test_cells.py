"""A finished run of balanced cells is sampled as all its cells together, in equal numbers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
from promptgen_jax.runs import run


def cell(tone, **training):
    """A cell of faces whose first pixel has a tone, which costs no network."""
    return {
        "controls": {"tone": {"kind": "synthetic", "energy": "quadratic", "target": (tone, tone, tone)}},
        "on": "generator",
        "flow": {"architecture": "coupling", "num_layers": 2, "hidden_dim": 8},
        "training": training or None,
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two cells in two groups, one of them trained for a step, the other left as the generator is, to be quick."""
    config = {
        "generator": {"name": "dcgan_digiface"},
        "stages": {"dark": cell(0.0, num_steps=1, batch_size=2, learning_rate=0.1), "bright": cell(1.0)},
        "evaluation": {"num_samples": 4, "num_shown": 1, "columns": 1},
        "mixtures": {
            "both": {"stages": ("dark", "bright"), "judges": ()},
            "bright only": {"stages": ("bright",), "judges": ()},
        },
    }
    workdir = tmp_path_factory.mktemp("cells")
    assert run.train_and_evaluate(config, workdir).exists()
    return workdir


def sample(workdir, output, *arguments):
    """Names of the pictures by folder, and the pictures."""
    assert main.main(["--mode=sample", f"--workdir={workdir}", f"--output={output}", *arguments]) == 0
    found = sorted(path for path in Path(output).rglob("*.png") if path.stem != "contact_sheet")
    names = {str(path.relative_to(output).parent): [] for path in found}
    for path in found:
        names[str(path.relative_to(output).parent)].append(path.stem)
    return names, {str(path.relative_to(output)): np.asarray(Image.open(path)) for path in found}


def test_cells_are_sampled_together_or_alone(finished, tmp_path, capsys):
    numbers = ["000000", "000001", "000002"]
    names, together = sample(finished, tmp_path / "both", "--mixture=both", "--num_samples=5")
    assert names == {"bright": numbers, "dark": numbers}  # five do not divide: three each
    assert any(np.any(together[f"dark/{each}.png"] != together[f"bright/{each}.png"]) for each in numbers)

    names, alone = sample(finished, tmp_path / "one", "--stage=dark", "--num_samples=2")
    assert names == {".": numbers[:2]}
    for each in numbers[:2]:  # the same faces, of the same cell; batches of other sizes round otherwise
        np.testing.assert_allclose(alone[f"{each}.png"], together[f"dark/{each}.png"].astype(int), atol=1)

    names, _ = sample(finished, tmp_path / "group", "--mixture=bright only", "--num_samples=1")
    assert names == {"bright": numbers[:1]}

    for arguments, message in (
        ((), "--mixture is missing: this run has several groups of stages, both, bright only"),
        (("--mixture=bth",), "Did you mean 'both'"),
        (("--stage=drak",), "Did you mean 'dark'"),
        (("--stage=dark", "--mixture=both"), "give one of the two"),
    ):
        assert main.main(["--mode=sample", f"--workdir={finished}", f"--output={tmp_path / 'no'}", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
