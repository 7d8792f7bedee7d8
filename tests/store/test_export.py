"""A prompt as one file that needs nothing but JAX: the same images, any batch, whatever generator and flow."""

import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DIM, as_picture, some_prompt

import promptgen_jax as pg
from promptgen_jax.draws import images_of
from promptgen_jax.generators import stylegan2

KEY = jax.random.key(7)
READER = """
import sys
import jax, jax.export, numpy as np
with open("face.stablehlo", "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
for size in (1, 5):
    eps = np.load("eps.npy")[:size]
    np.save(f"images_{size}.npy", jax.jit(program.call)(eps))
assert not any("promptgen" in name or name == "flax" for name in sys.modules), "needs more than JAX"
"""


def exported(prompt, folder, **options):
    """What the file of a prompt holds."""
    path = prompt.export(folder / "x.stablehlo", **options)
    return jax.export.deserialize(bytearray(path.read_bytes()))


def small():
    return some_prompt(pg.FunctionGenerator(prior=pg.Prior.standard(DIM), function=as_picture))


def test_another_process_makes_the_same_images_with_jax_alone(tmp_path):
    prompt = some_prompt(pg.load_generator("dcgan_digiface"))
    assert prompt.export(tmp_path / "face.stablehlo", platforms=("cpu",)) == tmp_path / "face.stablehlo"
    assert [path.name for path in tmp_path.iterdir()] == ["face.stablehlo"]
    draws = pg.Draws.of_prior(prompt.prior, KEY, 5)
    np.save(tmp_path / "eps.npy", draws.z)
    subprocess.run([sys.executable, "-c", READER], cwd=tmp_path, check=True, timeout=300)
    images = prompt.sample(KEY, 5)
    assert np.ptp(images, axis=0).max() > 0.1
    for size in (1, 5):
        np.testing.assert_allclose(np.load(tmp_path / f"images_{size}.npy"), images[:size], atol=1e-5)


def test_conditions_are_an_input_and_all_platforms_are_named(tmp_path):
    generator = pg.FunctionGenerator(prior=pg.Prior.standard(DIM), function=as_picture)
    prompt = some_prompt(generator, cond_dim=2)
    program = exported(prompt, tmp_path)
    assert program.platforms == ("cpu", "cuda", "tpu")
    eps, cond = prompt.prior.sample(KEY, 3), jnp.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
    images = program.call(eps, cond)
    np.testing.assert_allclose(images, prompt(KEY, eps, cond), atol=1e-5)
    assert np.abs(images - program.call(eps, cond[::-1])).max() > 1e-3


def test_noise_of_the_generator_comes_from_keys(tmp_path):
    generator = stylegan2.tiny()
    prompt = some_prompt(generator)
    here = {"platforms": ("cpu",)}
    program, draws = exported(prompt, tmp_path, **here), pg.Draws.of_prior(prompt.prior, KEY, 3)
    images = program.call(draws.z, jax.random.key_data(draws.key))
    np.testing.assert_allclose(images, images_of(prompt, draws.key, draws.z), atol=1e-5)
    assert np.abs(images - program.call(draws.z, jax.random.key_data(draws.key[::-1])))[0].max() > 1e-4
    assert len(program.in_avals) == 2
    assert len(exported(prompt.replace(generator=generator.replace(noise="const")), tmp_path, **here).in_avals) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("face.pt", r"face.pt does not end in \.stablehlo or \.onnx\. Name it face\.stablehlo or face\.onnx\.$"),
        (".", r"is a folder; expected a file\. Name one in it, \S+\.stablehlo\.$"),
        ("file/face.stablehlo", "cannot be made"),
    ],
    ids=["suffix", "folder", "below a file"],
)
def test_other_paths_are_refused(tmp_path, name, message):
    (tmp_path / "file").write_text("")
    with pytest.raises((ValueError, PermissionError), match=message):
        small().export(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unknown_platform_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'gpu'.*cuda"):
        small().export(tmp_path / "x.stablehlo", platforms=("gpu",))


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = small().export(tmp_path / "x.stablehlo")
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        small().export(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
