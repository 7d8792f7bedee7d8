"""Head pose by condition on the shipped models: controls, evaluation, and a whole run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import rotated_landmarks, some_prompt
from PIL import Image

import main
import promptgen_jax as pg
from configs import face_pose
from promptgen_jax import parts
from promptgen_jax.metrics import conditions
from promptgen_jax.models import facemesh
from promptgen_jax.ops import rotations
from promptgen_jax.runs import run
from promptgen_jax.store import images
from promptgen_jax.types import Sample

KEY = jax.random.key(0)
BAD = ("5", "a,b", "nan,0", "1,2,3")


@pytest.fixture(scope="module")
def faces():
    generator = parts.load_generator("dcgan_digiface")
    return jax.jit(lambda generator, z: generator(KEY, z))(generator, generator.prior.sample(KEY, 4))


@pytest.mark.parametrize(
    ("axis", "turn"), [("pitch", (1, 0, 0)), ("yaw", (0, -1, 0)), ("roll", (0, 0, -1))], ids=["nod", "turn", "roll"]
)
def test_facemesh_rotation_is_in_the_conventions_of_deca(axis, turn):
    """x nods down, y turns to the viewer's right, z rolls counterclockwise; the signs of `head_pose` differ."""
    matrix = facemesh.head_rotation(rotated_landmarks(**{axis: 25.0}))[0]
    np.testing.assert_allclose(matrix, rotations.from_euler_xyz(np.radians(25.0) * jnp.array(turn)), atol=1e-5)


def test_facemesh_rotation_agrees_with_its_angles(faces):
    outputs = jax.jit(lambda net, x: net(x))(parts.load_control("rotation").network, faces)
    np.testing.assert_allclose(
        outputs["rotation"] @ outputs["rotation"].swapaxes(1, 2), np.tile(np.eye(3), (4, 1, 1)), atol=1e-5
    )
    nod, turn, roll = np.degrees(rotations.to_euler_xyz(outputs["rotation"])).T
    np.testing.assert_allclose(np.stack([-turn, nod, -roll], 1), outputs["pose"], atol=4)


def test_rotation_control_is_zero_where_the_pose_is_the_one_asked(faces):
    control = parts.load_control("rotation", canonical=(0.2, 0.0, 0.0))
    seen = jax.jit(lambda control, x: control.pose(x))(control, faces)
    jitted = jax.jit(lambda control, x, cond: control(KEY, Sample(images=x, z=x[:, 0, :, 0], cond=cond)))

    def measure(control, cond):
        return jitted(control, faces, cond)

    np.testing.assert_allclose(measure(control, seen), 0, atol=1e-8)
    np.testing.assert_allclose(measure(control, seen + jnp.array([0, 0, 0.1])), 0.01, rtol=1e-3)
    without_roll = measure(control, seen[:, :2])  # a condition of two angles asks for no roll
    np.testing.assert_allclose(without_roll, seen[:, 2] ** 2, rtol=1e-2, atol=1e-6)


def test_identity_to_photographs_of_one_person(faces, tmp_path):
    """Every face is nearest to its own photographs; 8 bits cost little."""
    paths = [images.save_png(tmp_path / f"{i}.png", images.to_uint8(faces[i : i + 1])[0]) for i in range(4)]
    sample = Sample(images=faces, z=faces[:, 0, :, 0])
    measure = jax.jit(lambda control, sample: control(KEY, sample))
    options = {"options": {"input_size": 112}}
    for i in (0, 2):
        control = parts.load_control("identity", photographs=[str(paths[i])], **options)
        assert not control.needs_reference
        energies = np.asarray(measure(control, sample))
        assert energies[i] < 2e-3
        assert energies.argmin() == i
        assert np.delete(energies, i).min() > 0.1
    both = parts.load_control("identity", photographs=[str(paths[0]), str(paths[2])], **options)
    singles = [parts.load_control("identity", photographs=[str(paths[i])], **options) for i in (0, 2)]
    expected = np.mean([measure(control, sample) for control in singles], axis=0)
    np.testing.assert_allclose(measure(both, sample), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda tmp: parts.load_control("rotation", network="emotion"), ValueError, "emotion: output.*'rotation'"),
        (lambda tmp: parts.load_control("rotation", angle="oficial"), ValueError, "'official'"),
        (lambda tmp: parts.load_control("rotation", canonical=(0.3,)), ValueError, "three Euler angles"),
        (lambda tmp: parts.load_control("identity", network="facemesh"), ValueError, "'embedding'"),
        (lambda tmp: parts.load_control("identity", options={"input_sise": 112}), ValueError, "'input_size'"),
        (lambda tmp: parts.load_control("identity", photographs=["nobody.png"]), FileNotFoundError, "no such picture"),
        (lambda tmp: parts.load_control("identity", photographs=[broken(tmp)]), ValueError, "not a picture"),
        (lambda tmp: parts.load_control("identity", photographs=[portrait(tmp)]), ValueError, "64 x 96 .* not square"),
        (lambda tmp: energy("rotation", cond=None), ValueError, "condition is none.*cond_prior"),
        (lambda tmp: energy("rotation", cond=jnp.zeros((1, 4))), ValueError, r"condition is \(1, 4\)"),
        (lambda tmp: energy("identity"), ValueError, "no reference image"),
    ],
    ids=range(11),
)
def test_bad_input(call, error, match, tmp_path):
    with pytest.raises(error, match=match):
        call(tmp_path)


def portrait(folder):
    return images.save_png(folder / "portrait.png", np.zeros((96, 64, 3), np.uint8))


def broken(folder):
    (folder / "broken.png").write_bytes(b"\\x89PNG and no more")
    return folder / "broken.png"


def energy(kind, **sample):
    return parts.load_control(kind)(KEY, Sample(images=jnp.zeros((1, 64, 64, 3)), z=jnp.zeros((1, 1)), **sample))


def test_identity_distances_of_known_embeddings():
    first = np.eye(4)
    second = np.roll(first, 1, axis=0) / 2 + first * np.sqrt(3) / 2  # 30 degrees from itself
    found = conditions.identity_distances(first, second)
    assert np.isclose(found["same"], 2 * np.sin(np.radians(15)))
    assert found["closer"] == 1
    np.testing.assert_allclose(found["margin"], found["different"] - found["same"])
    strangers = conditions.identity_distances(first, np.roll(second, 2, axis=0))
    np.testing.assert_allclose(strangers["same"], np.sqrt(2))


def test_pose_error_goes_around_the_circle():
    found = conditions.pose_error([179.0, 10.0], [-179.0, 13.0])
    assert np.isclose(found["error"], 2.5)
    assert np.isclose(found["bias"], -2.5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished smoke run of the face pose config."""
    workdir = tmp_path_factory.mktemp("face_pose")
    config = face_pose.get_config("smoke").to_dict()
    config["evaluation"] |= {"num_samples": 16, "num_shown": 2, "judges": {"faceres": ()}}
    run.train_and_evaluate(config, workdir)
    return workdir


@pytest.mark.full
def test_report_of_a_conditional_run(finished):
    (stage,) = json.loads((finished / "report.json").read_text())["stages"]
    assert stage["exactness"] is None
    found = stage["conditions"]
    assert found["names"] == ["nod", "turn"]
    np.testing.assert_allclose(found["ranges"], [[-20, 20], [-20, 20]], atol=1e-4)
    assert [row["angle"] for row in found["pose"]] == ["nod", "turn"]
    assert [row["network"] for row in found["identity"]] == ["faceres"]
    assert len(stage["headline"]) == 3
    (distance,) = stage["metrics"]["kid"]["rows"]  # 16 samples are too few for a covariance
    assert distance["name"] == "KD (faceres)"
    assert set(stage["metrics"]) == {"kid"}
    page = (finished / "report.html").read_text()
    for text in (
        "Pose error in degrees",
        "Two faces",
        "There is no certificate",
        "KD (faceres)",
        "turn -20 to 20 degrees from left",
    ):
        assert text in page
    picture = np.asarray(Image.open(finished / "pose" / "samples.png"))
    assert picture.shape == (3 * 65 + 1 + 16, 2 * (3 * 65 + 1) + 24, 3)


@pytest.mark.full
def test_sampling_a_conditional_run(finished, tmp_path):
    """Without a condition nine poses a face and a sheet of them; with one, the same face in that pose."""
    common = ["--mode=sample", f"--workdir={finished}", "--num_samples=2", "--batch_size=6", "--latents"]
    assert main.main([*common, f"--output={tmp_path / 'grid'}"]) == 0
    assert main.main([*common, f"--output={tmp_path / 'one'}", "--condition=0,20"]) == 0
    with pytest.warns(UserWarning, match="beyond what pose was trained on: turn -20 to 20 degrees"):
        main.main([*common, f"--output={tmp_path / 'far'}", "--condition=0,45"])
    files = [sorted(path.name for path in (tmp_path / name).glob("0*.png")) for name in ("grid", "one")]
    assert [len(names) for names in files] == [18, 2]
    sheet = np.asarray(Image.open(tmp_path / "grid" / "grid.png"))
    assert sheet.shape == (212, 2 * 196 + 24, 3)
    single, tile = (
        np.asarray(Image.open(tmp_path / path)).astype(int) for path in ("one/000001.png", "grid/000014.png")
    )
    assert np.abs(single - tile).max() <= 1
    latents = np.load(tmp_path / "grid" / "latents.npz")
    assert (latents["eps"].shape, latents["z"].shape, latents["cond"].shape) == ((2, 100), (18, 100), (18, 2))
    np.testing.assert_allclose(np.degrees(latents["cond"][14]), [0, 20], atol=1e-4)
    card = (finished / "pose" / "prompt" / "README.md").read_text()
    assert "images = prompt.sample(jax.random.key(0), 16, cond=[0.0, 0.0])\n" in card
    assert "| nod | radians | -20 to 20 degrees |\n| turn | radians | -20 to 20 degrees |" in card


@pytest.mark.parametrize(
    ("condition", "match"),
    [(text, f"--condition={text}: expected 2 number(s): nod in degrees, turn in degrees; e.g. 20,20.") for text in BAD],
)
def test_wrong_conditions_of_sampling(condition, match, tmp_path, capsys):
    prompt = some_prompt(parts.load_generator("dcgan_digiface"), cond_dim=2)
    angles = pg.Conditions.of({"nod": (-20, 20, "angle"), "turn": (-20, 20, "angle")})
    prompt.replace(conditions=angles).save(tmp_path / "prompt")
    arguments = ["--mode=sample", f"--prompt={tmp_path / 'prompt'}", f"--output={tmp_path / 'x'}"]
    arguments.append(f"--condition={condition}")
    assert main.main(arguments) == 2
    assert match in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
