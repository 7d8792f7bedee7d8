"""Own PyTorch networks from their state dicts: ResNets of torchvision, a ViT of timm, a conditional DCGAN.

The networks are written here under the names that these libraries give their layers, which need not be installed.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from official_own import DCGAN, LABELS, ResNet, TimmViT, saved
from official_transformers import of_torch, photographs

import promptgen_jax as pg
from convert import dcgan_to_flax, layers, reading
from promptgen_jax.models import dcgan, preprocess, resnet, vit
from promptgen_jax.store import weights

torch = pytest.importorskip("torch", reason="torch, which writes and runs the official networks, is not installed")
nn = torch.nn
WAY = preprocess.Preprocess(rule="exact", size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def load(folder, file, module, options_of, recipe):
    """The ten lines of docs/extending.md."""
    tensors = reading.read_state(file, "a state dict")
    options = options_of(tensors)
    tree = reading.build_tree(file, tensors, recipe(options), layers.unused(tensors))
    config = {"kind": "network", "module": module, "options": options, "name": "own", "preprocess": WAY.to_json()}
    weights.save_weights(folder / "own", tree, config | {"attributes": {"label": LABELS}})
    return pg.load_network(folder / "own")


RESNETS = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True), 101: ((3, 4, 23, 3), True)}


@pytest.mark.parametrize("layers", [18, *(pytest.param(number, marks=pytest.mark.full) for number in (34, 50, 101))])
def test_resnet_of_torchvision(tmp_path, layers):
    model, file = saved(tmp_path, ResNet, *RESNETS[layers])
    net = load(
        *(tmp_path, file, "resnet.Classifier", resnet.options_of_torchvision),
        lambda options: resnet.classifier_recipe(resnet.TORCHVISION, options),
    )
    assert net.module.blocks == RESNETS[layers][0]
    agrees(net, model)


def test_vit_of_timm(tmp_path):
    model, file = saved(tmp_path, TimmViT)
    net = load(
        *(tmp_path, file, "vit.ViT", lambda tensors: vit.options_of_timm(tensors, heads=3)),
        lambda options: vit.classifier_recipe(vit.TIMM, options),
    )
    agrees(net, model)
    control = pg.load_control("classifier", network=net, target="owl")
    assert control.spec.options["network"].startswith("own ")


def agrees(net, model):
    """Logits differ from PyTorch's by rounding only, as a share of the largest."""
    images = photographs(32, 32)
    pixels = (images - np.float32(WAY.mean)) / np.float32(WAY.std)
    wanted, _ = of_torch(model, pixels, lambda logits: logits)
    np.testing.assert_allclose(
        jax.jit(lambda net, images: net(images))(net, images)["label"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max()
    )


def test_says_which_state_dict_it_reads(tmp_path):
    with pytest.raises(ValueError, match="no state dict of torchvision's ResNet .conv1, layer1 to layer4 and fc"):
        resnet.options_of_torchvision({"module.conv1.weight": np.zeros((8, 3, 7, 7))})
    with pytest.raises(ValueError, match="no state dict of timm's VisionTransformer .*cls_token.* missing"):
        vit.options_of_timm({}, heads=3)
    _, file = saved(tmp_path, TimmViT)
    with pytest.raises(ValueError, match="heads is 5, which does not divide the width 24"):
        vit.options_of_timm(reading.read_state(file, "a state dict"), heads=5)


def test_conditional_dcgan(tmp_path):
    model, file = saved(tmp_path, DCGAN, 6 + 4, (16, 12, 8), True)
    images_agree(model, file, latent=6, classes=4, convolutions=(0, 4, 7, 10), features=(16, 12, 8))


@pytest.mark.full
def test_eyes_of_a_published_package():
    """omniart-eye-generator 0.1, of which only the file of weights is read: legacy, saved on CUDA, with dropout."""
    spec = importlib.util.find_spec("omniart_eye_generator")
    if spec is None:
        pytest.skip("needs the package omniart-eye-generator")
    file = Path(spec.submodule_search_locations[0]) / "generator_model_state.pth"
    model = DCGAN(108, (1024, 512, 256, 128, 64), True).eval()
    model.load_state_dict(reading.read_torch(file))
    sizes = {"convolutions": (0, 4, 7, 10, 13, 16), "features": (1024, 512, 256, 128, 64)}
    images_agree(model, file, latent=100, classes=8, **sizes)


def images_agree(model, file, *, latent, classes, convolutions, features):
    """With its class given, and as a latent of two blocks, of which the second chooses the class; then controlled."""
    tensors = reading.read_state(file, "a state dict")
    tree = reading.build_tree(file, tensors, dcgan_to_flax.recipe(convolutions), layers.unused(tensors))
    module = dcgan.DCGAN(features=features)
    tree = jax.tree.map(jnp.asarray, tree)
    given = jnp.tile(jax.nn.one_hot(1, classes), (3, 1))
    z = jax.random.normal(jax.random.key(0), (3, latent))
    both = jnp.concatenate([z, given], axis=1)
    with torch.no_grad():
        wanted = (model(torch.tensor(np.array(both))).permute(0, 2, 3, 1).numpy() + 1) / 2
    np.testing.assert_allclose(jax.jit(module.apply)({"params": tree}, both), wanted, atol=1e-5)

    def of_two_blocks(params, z):
        noise, choice = jnp.split(z, [latent], axis=1)
        return module.apply(params, jnp.concatenate([noise, jax.nn.softmax(8 * choice)], axis=1))

    prior = pg.Prior.standard(latent, classes)
    function = jax.tree_util.Partial(of_two_blocks, {"params": tree})
    generator = pg.FunctionGenerator(prior, function, image_size=wanted.shape[1], name="own")
    chosen = jnp.concatenate([z, 9.0 * given], axis=1)
    np.testing.assert_allclose(generator(jax.random.key(0), chosen), wanted, atol=1e-4)
    dark = pg.FunctionControl(lambda images: jnp.mean(images, axis=(1, 2, 3)), name="dark", weight=50.0)
    prompt, history = pg.fit(
        pg.LatentEBM(generator, (dark,)),
        flow={"hidden_dim": 8, "num_layers": 2},
        num_steps=3,
        batch_size=2,
        learning_rate=5e-3,
    )
    assert np.isfinite(history[-1]["loss"])
    assert prompt.sample(jax.random.key(0), 2).shape == (2, *wanted.shape[1:])
