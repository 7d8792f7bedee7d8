"""What is left of images, energies and gradients where the products of networks are bfloat16, compared with float32.

Compiled as accelerators have it, where a product of bfloat16 is rounded; XLA leaves that out on CPUs if it may.
`python tests/models/test_bfloat16.py` says the errors.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promptgen_jax import LatentEBM, Prompt, fit, parts, types
from promptgen_jax.generators import biggan
from promptgen_jax.models import deca, irse, resnet
from promptgen_jax.models.network import Network, in_precision, load_module, load_network
from promptgen_jax.ops import products
from promptgen_jax.store.fingerprint import fingerprint

KEY, BATCH = jax.random.key(3), 3
TRAINING = {"batch_size": 2, "save_every": 1, "quiet": True, "flow": {"num_layers": 2, "hidden_dim": 8}}
ROUNDED = {"xla_allow_excess_precision": False}
FULL_SIZE = ("biggan_deep_256", "diffae_ffhq128", "nvae_celeba64", "stylegan2_256", "stylenerf_ffhq256")
GENERATORS = ("biggan", "dcgan", "diffae", "nvae", "stylegan2", "stylenerf")
EMOTION, TOWER = {"network": "emotion", "attribute": "emotion"}, {"network": "tinyclip_faces"}
EMBEDDED = jnp.eye(BATCH, 128)  # of sentences
HAPPY, SAD = (("emotion", "emotion", label) for label in ("happy", "sad"))
CONTROLS = {  # with networks that are shipped
    "cells": {"attributes": (HAPPY, SAD)},
    "classifier": {**EMOTION, "target": "happy"},
    "clip": {**TOWER, "text": "a smiling face", "num_augmentations": 4},
    "identity": TOWER,
    "judges": {"judges": (HAPPY, SAD)},
    "moment": EMOTION,
    "pose": {"yaw": 20.0},
    "rotation": {},
    "sentence": {**TOWER, "num_augmentations": 4},
}


def tiny(name):
    return importlib.import_module(f"promptgen_jax.generators.{name}").tiny()


def half(part):
    """As it is loaded with precision="bfloat16"."""
    return in_precision(part, "bfloat16")


def control(name, precision):
    """With betas of its own if it is a constraint."""
    made = parts.load_control(name, precision=precision, **CONTROLS[name])
    return made.replace(beta=jnp.linspace(-1, 1, len(made.beta))) if isinstance(made, types.Constraint) else made


@functools.cache
def faces():
    generator = parts.load_generator("dcgan_digiface")
    return generator(KEY, generator.prior.sample(KEY, BATCH))


def made_by(part, batch=BATCH):
    """What a generator makes of latents and the gradient of half its square, or a control's energies and theirs."""
    is_generator = isinstance(part, types.Generator)
    given = part.prior.sample(KEY, batch) if is_generator else faces()
    aimed = EMBEDDED if getattr(part, "name", "") == "text" else jnp.full((BATCH, 2), 0.2)

    def compute(part, given):
        if is_generator:
            return part(KEY, given)
        rest = {"z": jnp.zeros((BATCH, 1)), "cond": aimed, "reference": faces()[:, :, ::-1]}
        return part(KEY, types.Sample(images=given, **rest))

    def both(part, given):
        value, pull = jax.vjp(functools.partial(compute, part), given)
        return value, pull(value if is_generator else jnp.ones_like(value))[0]

    return jax.jit(both, compiler_options=ROUNDED)(part, given)


def errors(exact, rounded, batch=BATCH):
    """Largest and mean error of values, beside 1 or the largest of them, and the cosine between the gradients."""
    (value, gradient), (got, other) = made_by(exact, batch), made_by(rounded, batch)
    assert got.dtype == other.dtype == jnp.float32
    error = np.abs(got - value) / max(1, np.max(np.abs(value)))
    cosine = np.vdot(gradient, other) / np.linalg.norm(gradient) / np.linalg.norm(other)
    return np.max(error), np.sqrt(np.mean(error**2)), cosine


def slower(names, *slow):
    """Parametrises over names, of which the slow ones run with --full."""
    marks = {True: [pytest.mark.full], False: []}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks[name in slow]) for name in names])


@slower(GENERATORS, "biggan", "diffae", "nvae", "stylenerf")
def test_images_and_gradients(name, monkeypatch):
    """Of small random networks, in which every product is rounded."""
    monkeypatch.setattr(products, "FEW", 1)
    generator = tiny(name)
    largest, mean, cosine = errors(generator, half(generator))
    assert 0 < largest < 2e-2
    assert mean < 1e-2
    assert cosine > 0.99


@slower(CONTROLS, "clip", "identity", "rotation")
def test_energies_and_gradients(name):
    largest, _, cosine = errors(control(name, ""), control(name, "bfloat16"))
    assert 0 < largest < 1e-2
    assert cosine > 0.99


@pytest.mark.full
@pytest.mark.parametrize("name", FULL_SIZE)
def test_images_and_gradients_of_published_sizes(name):
    generator = full_size(name)
    _, mean, cosine = errors(generator, half(generator), batch=1)
    assert 0 < mean < 1e-2
    assert cosine > 0.99


def full_size(name):
    """A generator with the seeded weights of the golden data."""
    adapter, options = name.partition("_")[0], {}
    tree, config = importlib.import_module(f"official_{adapter}").converted(name)
    module, sizes = load_module(config), (512,)
    if adapter == "nvae":
        sizes, options = module.group_sizes[:1], {"control_groups": 1}
    prior = types.Prior.standard(*sizes)
    if adapter == "biggan":
        prior = biggan.make_prior(tree["buffers"]["embeddings"], "rms")
    make = type(tiny(adapter))
    return make(
        weights=jax.tree.map(jnp.asarray, tree),
        prior=prior,
        module=module,
        name=name,
        image_size=config["image_size"],
        **options,
    )


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_embeddings_and_gradients_of_a_clip_of_published_size(tmp_path):
    import official_clip
    from golden import seeded
    from official import GOLDEN

    state = seeded.seeded_state_dict(seeded.load_manifest("clip_vit_b32", GOLDEN))
    folder = official_clip.convert(
        official_clip.write_archive(tmp_path / "ViT-B-32.pt", state), tmp_path / "clip_vit_b32"
    )
    largest, _, cosine = errors(*(embedding(folder, precision) for precision in ("float32", "bfloat16")))
    assert 0 < largest < 1e-2
    assert cosine > 0.99


def embedding(folder, precision):
    """A control whose energies are the embedding, (B, E)."""
    network = load_network(folder, precision=precision)
    return jax.tree_util.Partial(lambda network, key, sample: network(sample.images)["embedding"], network)


def test_kernels_are_stored_in_it_and_nothing_else_is():
    generator = parts.load_generator("dcgan_digiface", precision="bfloat16")
    leaves = jax.tree.leaves_with_path(generator.weights)
    halves = {leaf.shape[-1] > products.FEW and path[-1].key == "kernel": leaf.dtype for path, leaf in leaves}
    assert halves == {True: jnp.bfloat16, False: jnp.float32}
    with pytest.raises(ValueError, match="Load it again with precision='float32'"):
        generator.replace(precision="float32")


def test_parts_say_it():
    generator = parts.load_generator("dcgan_digiface", precision="bfloat16")
    assert parts.describe(generator)["options"]["precision"] == "bfloat16"
    usual = parts.load_generator("dcgan_digiface")
    assert parts.describe(usual.replace(precision="tf32"))["options"]["precision"] == "tf32"
    assert parts.describe(control("pose", "bfloat16"))["options"]["precision"] == "bfloat16"
    pose = control("pose", "")
    assert parts.spec_of(pose.replace(network=load_network(pose.network, precision="bfloat16"))) is None
    assert fingerprint(usual) != fingerprint(usual.replace(precision="tf32"))


def network_of(module):
    return Network(weights={}, module=module, name="residual", checksum="", attributes=(), precision="bfloat16")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parts.load_generator("dcgan_digiface", precision="bfloat"), "precision.*bfloat16"),
        (lambda: load_network("emotion", precision="half"), "precision"),
        (lambda: load_network("faceres", precision="bfloat16"), "faceres: does not take precision 'bfloat16'"),
        (lambda: load_network("faceapi_age_gender", precision="bfloat16"), "faceapi_age_gender: does not take"),
        (lambda: network_of(resnet.FairFace()), "residual: does not take precision 'bfloat16'"),
        (lambda: network_of(irse.IRSE50()), "residual: does not take precision 'bfloat16'"),
        (lambda: network_of(deca.DECA()), "residual: does not take precision 'bfloat16'"),
        (lambda: tiny("flame").replace(precision="tf32"), "does not take precision 'tf32'.*Give 'float32'"),
        (lambda: parts.load_control("pose", yaw=1.0, precision=16), "facemesh: precision"),
    ],
)
def test_unknown_precisions(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_part_without_it_is_as_before_it_was_an_option():
    """So runs and prompts of then go on and load."""
    generator = parts.load_generator("dcgan_digiface")
    assert fingerprint(generator) == "7a1fb0f612aad44aad22e112579370b8128a04e8a1fef584e1320216cb94997a"
    assert fingerprint(control("pose", "float32")) == fingerprint(control("pose", ""))


def test_a_flow_trains_in_float32_through_it_and_its_prompt_remembers(tmp_path):
    def train(precision):
        generator = parts.load_generator("dcgan_digiface", precision=precision)
        ebm = LatentEBM(generator, (control("pose", precision),))
        return fit(ebm, workdir=tmp_path / "run", num_steps=1, **TRAINING)

    prompt, _ = train("bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(prompt.params)} == {jnp.dtype("float32")}
    with pytest.raises(ValueError, match=r"controls.pose.options.precision.*generator.fingerprint"):
        train("float32")
    assert train("bfloat16")[1] == []  # it is all there
    prompt.save(tmp_path / "prompt")
    assert Prompt.load(tmp_path / "prompt").generator.precision == "bfloat16"
    assert Prompt.load(tmp_path / "prompt", precision="float32").generator.precision == "float32"


def test_tf32_is_asked_of_the_products_alone():
    def products_of(precision):
        with jax.default_matmul_precision("highest"):
            generator = tiny("stylegan2").replace(precision=precision)
            return str(jax.make_jaxpr(generator)(KEY, generator.prior.sample(KEY, 1)))

    assert "HIGH," not in products_of("float32")
    assert "HIGH," in products_of("tf32")
    assert "bf16" not in products_of("tf32")


if __name__ == "__main__":
    faces_of = parts.load_generator("dcgan_digiface")
    print("dcgan_digiface", *errors(faces_of, half(faces_of)), flush=True)
    for name in CONTROLS:
        print(name, *errors(control(name, ""), control(name, "bfloat16")), flush=True)
    for name in FULL_SIZE:
        print(name, *errors(full_size(name), half(full_size(name)), batch=1), flush=True)
