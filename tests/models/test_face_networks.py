"""FairFace, CelebA attributes, IR-SE50 and DECA's encoder: golden parity through converter and module, and controls."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import crop, pool
from official_faces import CASES, every_network, golden, photos, seeded_state, torch, write_official

import promptgen_jax as pg
from configs import stylegan2_pose
from convert import layers, reading
from promptgen_jax import parts, training, types
from promptgen_jax.controls.rotation import squared_angle
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.generators import dcgan
from promptgen_jax.models import irse, network
from promptgen_jax.ops import resample, rotations
from promptgen_jax.store import catalogue, weights

KEY = jax.random.key(0)
SETS = [(name, option, size) for name, case in CASES.items() for option, sizes in case.sizes.items() for size in sizes]


def every_set(*, slow_above):
    """Parametrises over all golden sets; images of more than so many pixels a side are slow."""
    marks = {True: [pytest.mark.full], False: []}
    return pytest.mark.parametrize(
        ("name", "option", "size"),
        [pytest.param(*each, marks=marks[each[2] > slow_above], id=f"{each[0]}-{each[2]}") for each in SETS],
    )


@pytest.fixture(scope="module")
def convert(tmp_path_factory):
    """A function from the name of a golden folder to the folder of its converted weights."""
    made = {}

    def run(name):
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            # what a training script may have saved beside the weights
            beside = {"celeba_resnet50": {"epoch": 7, "accuracy": np.float64(0.5)}, "deca_encoder": {"E_detail": {}}}
            source = write_official(root, name, seeded_state(name), **beside.get(name, {}))
            folder = root / CASES[name].folder
            assert CASES[name].converter.main([str(source), str(folder)]) == 0
            source.unlink()
            made[name] = folder
        return made[name]

    yield run
    for folder in made.values():
        (folder / weights.TENSORS).unlink()


# --- comparison ------------------------------------------------------------------------------------------------------


def flat(outputs):
    """All outputs (B, ...) as the official networks order them; of a binary classifier the one logit (B,)."""
    if "Male" in outputs:
        return outputs["Male"][:, 1]
    order = ("race", "gender", "age", "embedding", "shape", "tex", "exp", "pose", "cam", "light")
    return jnp.concatenate([outputs[name].reshape(len(outputs[name]), -1) for name in order if name in outputs], axis=1)


@jax.jit
def run(net, images, weighting):
    """Outputs, and the gradient of their weighted sum by the images."""
    outputs, pullback = jax.vjp(lambda images: flat(net(images)), images)
    return outputs, pullback(weighting)[0]


def weighting_like(outputs):
    return np.cos(0.01 * np.arange(np.size(outputs))).reshape(np.shape(outputs)).astype(outputs.dtype)


def assert_within(what, got, expected, tolerance):
    error = np.max(np.abs(np.asarray(got) - expected))
    print(f"{what}: {error:.1e} of {np.max(np.abs(expected)):.1e}")
    assert np.shape(got) == expected.shape
    assert error < tolerance, f"{what}: {error:.2e}"


def stored_forms(arrays, name):
    """How the golden data keep an image-like array: whole, pooled, cropped, or as mean and deviation per channel."""
    forms = {
        "": lambda images, _: images,
        "_pool": pool,
        "_crop": crop,
        "_corner": lambda images, size: images[..., :size, :size],
        "_stats": lambda images, _: np.stack([np.float64(images).mean((-1, -2)), np.float64(images).std((-1, -2))], -1),
    }
    found = [(form, arrays[f"{name}{form}"], make) for form, make in forms.items() if f"{name}{form}" in arrays]
    assert found, f"no golden array {name}"
    return found


def assert_gradient(arrays, name, got, tolerance):
    """Relative L2 distance in every stored form."""
    got = np.moveaxis(np.asarray(got), -1, 1)
    for form, expected, make in stored_forms(arrays, name):
        error = np.linalg.norm(make(got, expected.shape[-1]) - expected) / np.linalg.norm(expected)
        print(f"{name}{form}: {error:.1e}")
        assert error < tolerance, f"{name}{form}: relative L2 {error:.2e}"


def energy(name, outputs):
    """Sum of the official energies whose gradient is in the golden data."""
    if name == "fairface_resnet34":
        return -jnp.sum(jax.nn.softmax(outputs[:, :7]) @ golden(name)["in_lambda_race"])
    if name == "celeba_resnet50":
        return -jnp.sum(jnp.log(jax.nn.sigmoid(outputs) + 1e-8))
    return 1 - outputs[0] @ outputs[1]


# --- parity ----------------------------------------------------------------------------------------------------------


@every_set(slow_above=64)
def test_golden(convert, name, option, size):
    case, arrays, net = CASES[name], golden(name), network.load_network(convert(name))
    images, expected = photos(name, option, size), arrays[case.output.format(option, size)]
    outputs, gradient = run(net, images, weighting_like(expected))
    assert_within("outputs", outputs, expected, case.output_tolerance)
    if name == "deca_encoder" and size > 64:
        return  # the golden data hold no gradient by these images
    assert_gradient(arrays, case.gradients[0].format(option, size), gradient, case.gradient_tolerance)
    for target in case.gradients[1:]:
        gradient = run(net, images, jax.grad(lambda outputs: energy(name, outputs))(outputs))[1]
        assert_gradient(arrays, target.format(option, size), gradient, case.gradient_tolerance)


@every_set(slow_above=1024)
def test_input(name, option, size):
    """Antialiasing, other pixel centres or another crop would be off by 0.01 at least."""
    target = CASES[name].input.format(option, size)
    got = np.moveaxis(np.asarray(jax.jit(CASES[name].preprocess)(photos(name, option, size))), -1, 1)
    for form, expected, stored in stored_forms(golden(name), target):
        if name == "deca_encoder" and form == "_stats":
            expected = np.moveaxis(expected, 1, -1)
        assert_within(f"{target}{form}", stored(got, expected.shape[-1]), expected, 1e-5)


def resized_by_torch(name, images):
    """Images (B, 3, H, W) at the size that the network asks for, by PyTorch in their precision."""
    if name == "irse50":
        return torch.nn.functional.adaptive_avg_pool2d(images, 256)
    return torch.nn.functional.interpolate(images, size=(224, 224), mode="bilinear")


@pytest.mark.full
@pytest.mark.parametrize("name", ["fairface_resnet34", "celeba_resnet50", "irse50"])
def test_gradient_in_double_precision(convert, name):
    """Converter and network in float64, images of 1024 pixels resized by PyTorch: what was rounding is gone.

    The golden gradients of DECA are float32 runs.
    """
    case, module = CASES[name], network.load_network(convert(name)).module
    tensors = {key: np.float64(value) for key, value in seeded_state(name).items()}
    tree = reading.build_tree(name, tensors, case.converter.recipe(), layers.unused(tensors))
    images = torch.tensor(photos(name, "", 1024).transpose(0, 3, 1, 2), dtype=torch.float64, requires_grad=True)
    resized = resized_by_torch(name, images)

    @jax.jit
    def differentiate(tree, images):
        outputs, pullback = jax.vjp(lambda images: flat(module.apply({"params": tree}, images)), images)
        return pullback(weighting_like(outputs))[0]

    with jax.enable_x64(True):
        gradient = np.asarray(differentiate(tree, resized.detach().numpy().transpose(0, 2, 3, 1)))
    assert gradient.dtype == np.float64
    resized.backward(torch.tensor(gradient.transpose(0, 3, 1, 2)))
    gradient = images.grad.numpy().transpose(0, 2, 3, 1)
    assert_gradient(golden(name), case.gradients[0].format("", 1024), gradient, 2e-7)


SHAPES = [(64, 224), (1024, 224), (37, 16), (16, 37), (188, 112), (5, 5), (1, 3)]


@pytest.mark.parametrize(("num_in", "num_out"), SHAPES)
def test_resampling_is_that_of_pytorch(num_in, num_out):
    line = np.random.default_rng(0).uniform(size=(1, 1, 1, num_in)).astype(np.float32)
    for matrix, expected in (
        (resample.bilinear_matrix, torch.nn.functional.interpolate(torch.tensor(line), (1, num_out), mode="bilinear")),
        (resample.average_matrix, torch.nn.functional.adaptive_avg_pool2d(torch.tensor(line), (1, num_out))),
    ):
        got = matrix(num_in, num_out) @ line[0, 0, 0]
        np.testing.assert_allclose(got, expected.numpy()[0, 0, 0], atol=1e-6)


# --- as networks under control ---------------------------------------------------------------------------------------


@jax.jit
def energies(controls, images):
    sample = types.Sample(images=images, z=jnp.zeros((len(images), 1)))
    return [control(KEY, sample) for control in controls]


def test_fairface_resnet34_moment_controls(convert):
    folder, arrays = str(convert("fairface_resnet34")), golden("fairface_resnet34")
    controls = [
        parts.load_control("moment", network=folder, attribute=attribute).replace(
            beta=jnp.asarray(arrays[f"in_lambda_{attribute}"])
        )
        for attribute in ("race", "gender", "age")
    ]
    for control, got in zip(controls, energies(controls, photos("fairface_resnet34", "", 64)), strict=True):
        assert_within(control.name, got, arrays[f"out_debias_{control.name}_64"], 1e-5)


def test_celeba_resnet50_classifier_controls(convert):
    folder, arrays = str(convert("celeba_resnet50")), golden("celeba_resnet50")
    controls = [
        parts.load_control("classifier", network=folder, attribute="Male", target=target) for target in ("no", "yes")
    ]
    for value, got in enumerate(energies(controls, photos("celeba_resnet50", "", 64))):
        # the official floor of 1e-8 is far below these probabilities
        assert_within(controls[value].target, got, arrays[f"out_class_energy_{value}_64"], 2e-5)


def test_irse50_identity_control(convert):
    """The official energy of a pair; its gradients by both images are among those of the network."""
    control, arrays = parts.load_control("identity", network=str(convert("irse50"))), golden("irse50")
    for option, size in (("", 64), ("2", 200)):
        images = photos("irse50", option, size)
        assert_within(
            "identity", compare(control, images[:1], images[1:]), arrays[f"out{option}_id_energy_{size}"], 1e-5
        )


@jax.jit
def compare(control, images, reference):
    return control(KEY, types.Sample(images=images, z=jnp.zeros((1, 1)), reference=reference))


def test_deca_encoder_rotation_control(convert):
    """The official energy of images and relative Euler angles, its straight ends included."""
    arrays, images = golden("deca_encoder"), photos("deca_encoder", "", 64)
    options = {"network": str(convert("deca_encoder")), "canonical": (0.3, 0, 0), "angle": "official"}
    control = parts.load_control("rotation", **options)
    measure = jax.jit(lambda control, sample: control(KEY, sample))
    sample = types.Sample(images=images, z=jnp.zeros((3, 1)), cond=jnp.asarray(arrays["in_alpha64"]))
    assert_within("energy", measure(control, sample), arrays["out_energy64"], 2e-5)


@pytest.mark.parametrize("name", ["64", "256", "1024", "2_256"])
def test_deca_encoder_pose_energy(name):
    """Values and gradients by angles and pose, at the golden network outputs."""
    arrays = golden("deca_encoder")
    option, size = name.split("_") if "_" in name else ("", name)
    pose = jnp.asarray(arrays[f"out{option}_params{size}"][:, 200:206])
    canonical = rotations.from_euler_xyz(jnp.array([0.3, 0.0, 0.0]))

    @jax.jit
    def energy(cond, pose):
        seen = rotations.from_axis_angle(pose[:, :3])
        return [squared_angle(cond, canonical, seen, angle) for angle in ("official", "geodesic")]

    @jax.jit
    def weighted(cond, pose):
        return jnp.sum(energy(cond, pose)[0] * jnp.cos(0.01 * jnp.arange(len(cond))))

    cond, expected = jnp.asarray(arrays[f"in{option}_alpha{size}"]), arrays[f"out{option}_energy{size}"]
    official, exact = energy(cond, pose)
    assert_within("energy", official, expected, 5e-5 if option else 5e-6)
    inside = (expected > 0.015**2) & (expected < 3.12**2)
    np.testing.assert_allclose(exact[inside], expected[inside], rtol=1e-4)
    for got, gradient in zip(
        jax.grad(weighted, argnums=(0, 1))(cond, pose),
        (arrays[f"grad{option}_alpha{size}"], arrays[f"grad{option}_pose{size}"]),
        strict=True,
    ):
        error = np.linalg.norm(got - gradient) / np.linalg.norm(gradient)
        print(f"gradient: {error:.1e}")
        assert error < (2e-3 if option else 2e-5)


@pytest.mark.full
def test_pose_experiment_takes_a_step(convert):
    """The config of the paper's pose experiment with DECA and IR-SE50 at full size, on a small generator."""
    config = stylegan2_pose.get_config("smoke").to_dict()
    stage = config["stages"]["pose"]
    stage["controls"]["pose"]["network"] = str(convert("deca_encoder"))
    stage["controls"]["identity"]["network"] = str(convert("irse50"))
    ebm = LatentEBM(dcgan.tiny(), helpers.build_controls(stage), pg.Conditions.of(stage["condition"]))
    prompt, history = training.fit(ebm, flow=stage["flow"], quiet=True, **stage["training"])
    assert prompt.flow.cond_dim == 3
    assert [line["step"] for line in history] == [1, 2]
    assert all(np.isfinite(value) for line in history for value in line.values())


@every_network
def test_converted_folder(convert, name):
    folder, known = convert(name), catalogue.CHECKPOINTS[CASES[name].folder]
    net = network.load_network(folder)
    outputs = jax.eval_shape(net, jax.ShapeDtypeStruct((2, 50, 37, 3), jnp.float32))
    attributes = {
        "fairface_resnet34": {"race": 7, "gender": 2, "age": 9},
        "celeba_resnet50": {"Male": 2},
    }.get(name, {})
    assert {attribute: len(labels) for attribute, labels in net.attributes} == attributes
    assert {key: outputs[key].shape for key in attributes} == {key: (2, size) for key, size in attributes.items()}
    others = {
        "irse50": {"embedding": (512,)},
        "deca_encoder": {"shape": (100,), "tex": (50,), "exp": (50,), "pose": (6,), "cam": (3,), "light": (9, 3)}
        | {"rotation": (3, 3)},
    }.get(name, {})
    assert {key: value.shape[1:] for key, value in outputs.items() if key not in attributes} == others
    source = (folder / "SOURCE.md").read_text()
    for fact in (known.url, known.license, known.command(CASES[name].folder), known.file):
        assert fact in source


@pytest.mark.full
def test_irse50_symmetric_range(convert):
    """The range the network learnt on is the paper's on stretched images."""
    net, images = network.load_network(convert("irse50")), photos("irse50", "", 64)
    symmetric = net.replace(module=irse.IRSE50(symmetric=True))
    embed = jax.jit(lambda net, images: net(images)["embedding"])
    assert_within("symmetric", embed(symmetric, images), np.asarray(embed(net, 2 * images - 1)), 1e-5)
    assert np.abs(embed(symmetric, images) - embed(net, images)).max() > 1e-3
