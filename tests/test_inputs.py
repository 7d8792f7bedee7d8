"""What users may hand over, what they are told if they may not, and what they are shown."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import promptgen_jax as pg
from promptgen_jax import checks
from promptgen_jax.store import weights

KEY = jax.random.key(0)
FLOW = {"architecture": "coupling", "num_layers": 2, "hidden_dim": 8}


def prompt(cond_dim=0):
    generator = helpers.make_ebm().generator
    flow, params = pg.init_flow(KEY, generator.prior, cond_dim=cond_dim, **FLOW)
    return pg.Prompt(generator, flow, params)


def test_images_that_are_known_under_jit_are_checked_there():
    """An energy of given images as a function of the key, say."""
    images = jnp.full((1, 4, 4, 3), 0.5)
    jax.jit(lambda key: checks.check_images("here", images))(KEY)
    with pytest.raises(ValueError, match="here: images reach 30; expected"):
        jax.jit(lambda key: checks.check_images("here", 60 * np.asarray(images)))(KEY)
    with pytest.raises(ValueError, match="here: images reach 20; expected"):
        checks.check_images("here", -40 * images)


def test_conditions_may_be_lists():
    asked = np.array([[0.1, 0.2], [0.3, -0.1]], np.float32)
    drawn = prompt(2).sample(KEY, 2, cond=asked)
    np.testing.assert_array_equal(prompt(2).sample(KEY, 2, cond=asked.tolist()), drawn)
    np.testing.assert_array_equal(prompt(2).sample(KEY, 1, cond=[0.1, 0.2])[0], drawn[0])
    with pytest.raises(ValueError, match=r"prompt\.sample: cond is \(\); expected \(2, 2\)"):
        prompt(2).sample(KEY, 2, cond=0.1)


def test_options_beside_a_generator_are_refused(tmp_path):
    prompt().save(tmp_path / "prompt")
    with pytest.raises(ValueError, match=r"options truncation_psi beside generator=.*replace"):
        pg.Prompt.load(tmp_path / "prompt", generator=prompt().generator, truncation_psi=0.7)


def test_of_many_names_those_like_the_wrong_one_are_offered():
    many = [f"face_{number}" for number in range(20)] + ["stylegan2"]
    assert checks.nearest("stylegan", many) == "Did you mean 'stylegan2'?"
    assert checks.nearest("face_1x", many).startswith("Did you mean 'face_1'? Or face_")
    assert checks.nearest("nothing of the kind", many) == f"Known: {', '.join(sorted(many))}."
    assert checks.nearest("clips", ["pose", "clip"]) == "Did you mean 'clip'? Known: clip, pose."


def test_a_control_alone_is_no_target():
    control = pg.FunctionControl(lambda images: jnp.mean(images, axis=(1, 2, 3)))
    with pytest.raises(
        TypeError, match=r"controls is a FunctionControl; expected a tuple of controls. Write \(control,\)"
    ):
        pg.LatentEBM(helpers.make_ebm().generator, control)


CALLS = {
    "fit_moments": lambda key: pg.fit_moments(helpers.make_ebm(), key),
    "exactness": lambda key: pg.evaluation.exactness(prompt(), helpers.make_ebm(), key),
    "resample": lambda key: pg.evaluation.resample(prompt(), helpers.make_ebm(), key, 4),
    "log_weights": lambda key: pg.evaluation.log_weights(prompt(), helpers.make_ebm(), key, 4),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_seed_is_no_key(call):
    with pytest.raises(TypeError, match=rf"{call}: got int for key; expected a typed key. Use jax.random.key\(seed\)"):
        CALLS[call](0)


def test_objects_show_themselves_without_their_weights():
    """Typed at a prompt or the end of a notebook's cell."""
    control = pg.load_control("pose", yaw=10.0)
    trained = prompt().replace(generator=pg.load_generator("dcgan_digiface"))
    assert "dcgan_digiface" in repr(trained)
    assert "facemesh" in repr(control)
    assert max(map(len, map(repr, (control, trained)))) < 3000


def test_a_network_without_pose_is_no_pose_control():
    with pytest.raises(ValueError, match="faceres: output: unknown name 'pose'"):
        pg.load_control("pose", network="faceres", yaw=10.0)


def test_a_config_that_is_no_object(tmp_path):
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json: holds no JSON object"):
        weights.read_config(tmp_path)
