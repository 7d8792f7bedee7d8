"""Models of transformers as networks: the same logits, gradients, labels and preprocessing, and what is refused."""

import jax
import jax.numpy as jnp
import official_transformers as official
import pytest
from official_transformers import of_jax, of_torch, photographs

import promptgen_jax as pg


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return official.write(tmp_path_factory.mktemp("hub") / "mood", official.vit())


def test_an_image_classifier_trains_the_shipped_generator_in_one_line(folder, tmp_path):
    happy = pg.load_control("classifier", network=str(folder), target="happy")
    assert happy.network.labels("label") == ("sad", "happy", "angry")
    ebm = pg.LatentEBM(pg.load_generator("dcgan_digiface"), (happy,))
    options = {"num_steps": 4, "batch_size": 4, "kl_batch_size": 64, "warmup_steps": 1}
    prompt, history = pg.fit(ebm, flow={"architecture": "coupling", "hidden_dim": 8}, **options)
    assert history[-1]["energy/happy"] < history[0]["energy/happy"]
    prompt.save(tmp_path / "prompt")
    assert pg.Prompt.load(tmp_path / "prompt").sample(jax.random.key(0), 2).shape == (2, 64, 64, 3)
    with pytest.raises(ValueError, match="Did you mean 'happy'"):
        pg.load_control("classifier", network=str(folder), target="hapy")


@pytest.mark.parametrize("size", [(16, 16), (24, 24), (40, 24)])
def test_vit_on_images_of_any_size(folder, size):
    network = pg.load_network(folder, do_resize=False)
    images = photographs(*size)
    pixels = network.preprocess(jnp.asarray(images))
    made, gradient = of_torch(official.vit(), pixels, lambda out: out.logits, interpolate_pos_encoding=True)
    got = of_jax(lambda images: network(images)["label"], images)
    official.assert_close(got, (made, gradient / official.PROCESSOR["image_std"]))
