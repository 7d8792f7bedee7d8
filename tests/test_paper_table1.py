"""The five rows of the paper's Table 1, each as a test on a generator of colours, whose truth is plain to see."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import promptgen_jax as pg
from promptgen_jax.types import Prior

KEY = jax.random.key(0)
CALLS: list[str] = []
OWN = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
import promptgen_jax as pg
from promptgen_jax.types import Prior


def paint(z):
    return jnp.tile(jax.nn.sigmoid(z[:, None, None, :3]), (1, 8, 8, 1))


generator = pg.FunctionGenerator(Prior.standard(4), paint)
prompt = pg.Prompt.load(sys.argv[1], generator=generator)
np.save(sys.argv[2], prompt.sample(jax.random.key(1), 16))
"""


def colours():
    """Latents (B, 4) to pictures (B, 8, 8, 3) of one colour; the last latent shows nowhere."""
    return pg.FunctionGenerator(
        Prior.standard(4), lambda z: jnp.tile(jax.nn.sigmoid(z[:, None, None, :3]), (1, 8, 8, 1))
    )


def colour(channel, weight=40.0):
    """A control of one's own: any function of pictures."""

    def energy(images):
        CALLS.append("control")  # whenever it is traced
        return (1 - jnp.mean(images[..., channel], axis=(1, 2))) ** 2

    return pg.FunctionControl(energy, name=f"channel {channel}", weight=weight)


def trained(generator, control):
    ebm = pg.LatentEBM(generator, (control,))
    flow = {"architecture": "coupling", "num_layers": 4, "hidden_dim": 16}
    prompt, _ = pg.fit(ebm, flow=flow, quiet=True, num_steps=150, batch_size=64, learning_rate=1e-2)
    return prompt


def mean(generator, channel):
    z = generator.prior.sample(KEY, 256)
    return float(np.mean(generator(KEY, z)[..., channel]))


@pytest.fixture(scope="module")
def red():
    return trained(colours(), colour(0))


def test_arbitrary_control(red):
    """A function of pictures, known to nobody, moves what it asks for and leaves the rest."""
    assert mean(colours(), 0) < 0.55
    assert mean(red, 0) > 0.7
    assert abs(mean(red, 1) - 0.5) < 0.07


def test_low_dimensional_latent(red):
    """The flow moves the four latents, not the 192 numbers of a picture, and its density there is exact."""
    eps = red.prior.sample(KEY, 2)
    assert red.latents(eps).shape == (2, 4)
    one = red.latents(eps)[0]
    jacobian = jax.jacobian(lambda eps: red.latents(eps[None])[0])(eps[0])
    expected = red.prior.log_prob(eps[:1])[0] - np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(red.log_prob(one[None])[0], expected, rtol=1e-4)


def test_stands_alone(red, tmp_path):
    """A process that has never heard of the control samples the same pictures from what was saved."""
    red.save(tmp_path / "red")
    (tmp_path / "alone.py").write_text(OWN)
    line = [sys.executable, str(tmp_path / "alone.py"), str(tmp_path / "red"), str(tmp_path / "made.npy")]
    subprocess.run(line, check=True, timeout=120)
    np.testing.assert_allclose(np.load(tmp_path / "made.npy"), red.sample(jax.random.key(1), 16), atol=1e-6)


def test_feed_forward(red):
    """Sampling is one pass of flow and generator: no control, no gradient steps, no loop but over pairs of layers."""
    CALLS.clear()
    program = str(jax.make_jaxpr(lambda prompt, eps: prompt.generator(KEY, prompt.latents(eps)))(red, np.zeros((2, 4))))
    assert not CALLS
    assert "while" not in program
    pairs = red.flow.module.num_layers // 2
    assert program.count("scan[") == len(re.findall(rf"length={pairs}\b", program)) <= 1


def test_iterative(red):
    """A prompt is a generator: a second control on top of it keeps the first, and the density is that of both."""
    both = trained(red, colour(1))
    assert mean(both, 0) > 0.65
    assert mean(both, 1) > 0.7
    z = both.prior.sample(KEY, 3)
    images = red(KEY, both.latents(z))
    np.testing.assert_allclose(both(KEY, z), images, atol=1e-6)
