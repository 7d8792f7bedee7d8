"""What a training says of itself, and what may be resumed; what an evaluation looks at."""

import json
import shutil

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from PIL import Image

import promptgen_jax as pg
from configs import synthetic_linear
from promptgen_jax.draws import Draws
from promptgen_jax.evaluation import About, observe
from promptgen_jax.runs import pictures, run

KEY = jax.random.key(0)
FLOW = {"architecture": "coupling", "num_layers": 2, "hidden_dim": 8}
OPTIONS = {"num_steps": 2, "batch_size": 256, "log_every": 1, "quiet": True}


@pytest.mark.parametrize("objective", ["reverse_kl", "score_function", "forward_kl"])
def test_the_gap_to_a_moment_is_that_of_the_flow_or_not_told(objective):
    """Forward KL has no gradient to read it off."""
    generator = pg.load_generator("synthetic", problem="mixture2d")
    ebm = pg.LatentEBM(generator, (pg.load_control("synthetic", energy="moment", mu=(0.5, 0.5), name="mode"),))
    ebm, _ = pg.fit_moments(ebm, KEY)
    _, history = pg.fit(ebm, flow=FLOW, objective=objective, **OPTIONS)
    if objective == "forward_kl":
        assert "moment_gap/mode" not in history[0]
    else:  # at its start the flow leaves everything as it is, and shares are 0.3 and 0.7
        assert 0.1 < history[0]["moment_gap/mode"] < 0.3


@pytest.mark.parametrize("objective", ["reverse_kl", "cgm_relax"])
def test_several_constraints_and_one_that_is_switched_off(objective):
    generator = pg.load_generator("synthetic", problem="mixture2d")
    one, other = (
        pg.load_control("synthetic", energy="moment", mu=(0.5, 0.5), name=name, weight=weight)
        for name, weight in (("one", 1.0), ("other", 0.0))
    )
    _, history = pg.fit(pg.LatentEBM(generator, (one, other)), flow=FLOW, objective=objective, **OPTIONS)
    assert np.isfinite(list(history[-1].values())).all()
    assert 0.1 < history[0]["moment_gap/one"] < 0.3
    if objective == "reverse_kl":  # which reads it off a gradient that the weight has made 0
        assert history[0]["moment_gap/other"] == 0


def test_a_loop_needs_something_to_correct():
    with pytest.raises(ValueError, match="closed_loop corrects constraints, and no control of this target is one"):
        pg.fit(helpers.make_ebm(), flow=FLOW, closed_loop=0.3, **OPTIONS)
    with pytest.raises(ValueError, match=r"training.closed_loop is -1.0; expected a number from 0"):
        pg.fit(helpers.make_ebm(), flow=FLOW, closed_loop=-1.0, **OPTIONS)


def bright(images):
    return jnp.mean(images, axis=(1, 2, 3))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"ebm": helpers.make_ebm(bright)}, r"differs in controls\.bright, controls\.quadratic"),
        ({"learning_rate": 0.1}, r"differs in training\.learning_rate"),
        ({"num_steps": np.int64(3)}, r"differs in training\.num_steps"),
        ({"flow": FLOW | {"hidden_dim": 4}}, r"differs in flow\.hidden_dim"),
    ],
    ids=["control", "option", "steps", "flow"],
)
def test_another_training_in_the_workdir_is_not_taken_for_this_one(change, match, tmp_path):
    arguments = {"ebm": helpers.make_ebm(), "flow": FLOW, **OPTIONS}
    first, _ = pg.fit(workdir=tmp_path, **arguments)
    again, history = pg.fit(workdir=tmp_path, **arguments | {"log_every": 2, "save_every": 7})
    assert helpers.leaves_equal(first.params, again.params)
    assert not history
    with pytest.raises(ValueError, match=match):
        pg.fit(workdir=tmp_path, **arguments | change)


def test_only_a_whole_training_is_timed(tmp_path):
    """Of one that was resumed, what went before is not known."""
    config = synthetic_linear.get_config("smoke").to_dict()
    config["stages"]["quadratic"]["flow"] = FLOW
    (control,) = helpers.build_controls(config["stages"]["quadratic"])
    ebm = pg.LatentEBM(pg.load_generator(**config["generator"]), (control,))
    run.train_stage("quadratic", config, ebm, tmp_path)
    timing = tmp_path / "quadratic" / "timing.json"
    assert json.loads(timing.read_text())["train_seconds"] > 0
    shutil.rmtree(tmp_path / "quadratic" / "prompt")
    run.train_stage("quadratic", config, ebm, tmp_path)
    assert json.loads(timing.read_text()) == {}


@struct.dataclass
class Noisy:
    """A generator with noise of its own, of one number a latent; red where it repeats the latent, else white."""

    prior: pg.Prior = pg.Prior.standard(4)
    image_size: int = struct.field(pytree_node=False, default=4)

    def __call__(self, key, z):
        """Images (B, 4, 4, 3), with the noise added in the last colour."""
        noise = jax.random.normal(key, z.shape)
        red = jnp.where(noise == z, 0.0, 1.0)
        return jnp.tile(jnp.stack([jnp.ones_like(z), red, red + 0.1 * noise], axis=-1)[:, None], (1, 4, 1, 1))


def noisy_prompt():
    ebm = pg.LatentEBM(Noisy(), (pg.FunctionControl(bright, name="bright"),))
    flow, params = pg.init_flow(KEY, ebm.generator.prior, **FLOW)
    return ebm, pg.Prompt(ebm.generator, flow, params)


def test_judges_see_the_images_that_were_weighed():
    """With the noise that their energies were computed with."""
    ebm, prompt = noisy_prompt()
    before = Draws.of_prior(prompt.prior, KEY, 8)
    seen = observe({"before": before, "after": before.through(prompt)}, About(ebm, batch_size=4))
    for found in seen.values():
        np.testing.assert_allclose(bright(found.images), found.energies["bright"], atol=1e-5)


def test_noise_of_pictures_does_not_repeat_their_latents(tmp_path):
    ebm, prompt = noisy_prompt()
    assert np.all(ebm.generator(KEY, ebm.generator.prior.sample(KEY, 4))[..., 1] == 0)  # red: one key for both
    options = {"num_shown": 4, "columns": 2, "pictures": {}}
    pictures.write("bright", ebm, prompt, KEY, options, tmp_path)
    pixels = np.asarray(Image.open(tmp_path / "samples.png")).astype(int)
    assert not np.any(pixels[..., 0] - pixels[..., 1] > 100)


def test_certificates_of_one_prompt_compile_once():
    """Those after the first; keys and samples are other ones, sizes the same."""
    traces = []

    def counted(images):
        traces.append(images.shape)
        return bright(images)

    generator = pg.FunctionGenerator(prior=pg.Prior.standard(4), function=helpers.as_picture)
    ebm = pg.LatentEBM(generator, (pg.FunctionControl(counted, name="bright"),))
    flow, params = pg.init_flow(KEY, generator.prior, **FLOW)
    prompt = pg.Prompt(generator, flow, params)
    found = [
        pg.evaluation.exactness(prompt, ebm, jax.random.key(seed), num_samples=8, reference_samples=8)
        for seed in range(3)
    ]
    assert len(traces) == 1  # samples of flow and prior pass through one program
    assert found[0]["loss"] != found[1]["loss"]
