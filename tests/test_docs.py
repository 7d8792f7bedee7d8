"""The code of the documentation, run as it is printed."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import promptgen_jax as pg
from promptgen_jax import controls

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"```python(?: title=\"(.*?)\")?\n(.*?)```", re.DOTALL)


def blocks(name):
    """[(title, code)] of a page."""
    return BLOCK.findall((DOCS / name).read_text())


def test_extending(tmp_path, monkeypatch):
    """Own functions, own network with weights and own file, as a reader would paste them one after the other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(controls, "__path__", [*controls.__path__, str(tmp_path)])
    names = {}
    ten_lines, network, (title, own_file) = blocks("extending.md")

    exec(ten_lines[1], names)
    np.testing.assert_allclose(np.mean(names["pictures"], axis=(0, 1, 2)), [0.9, 0.1, 0.1], atol=0.12)

    exec(network[1], names)
    key, generator = jax.random.key(2), names["generator"]
    assert len(jax.tree.leaves(generator)) > len(jax.tree.leaves(generator.prior))  # weights are leaves
    uncontrolled = generator(key, generator.prior.sample(key, 64))
    energies = [
        float(jnp.mean(names["control"](key, pg.Sample(images=images, z=jnp.zeros((64, 6))))))
        for images in (uncontrolled, names["prompt"].sample(key, 64))
    ]
    assert energies[1] < 0.5 * energies[0]
    np.testing.assert_array_equal(names["again"].sample(key, 4), names["prompt"].sample(key, 4))

    (tmp_path / Path(title).name).write_text(own_file)
    control = pg.load_control("bright", level=0.8, weight=500.0)
    energy = control(key, pg.Sample(images=jnp.full((2, 4, 4, 3), 0.3), z=jnp.zeros((2, 6))))
    np.testing.assert_allclose(energy, 0.25, rtol=1e-5)
    with pytest.raises(ValueError, match="'brigt'.*'bright'"):
        pg.load_control("brigt", level=0.8)
