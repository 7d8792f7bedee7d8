"""A prompt as an ONNX file: the same images where there is no JAX, any batch, conditions as inputs."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DIM, as_picture, some_prompt

import promptgen_jax as pg
from promptgen_jax.generators import stylegan2

KEY = jax.random.key(7)
READER = """
import sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("face.onnx")
for size in (1, 5):
    (images,) = session.run(["images"], {"eps": np.load("eps.npy")[:size]})
    np.save(f"images_{size}.npy", images)
assert not any(name in ("jax", "promptgen_jax") for name in sys.modules), "needs more than onnxruntime"
"""


@pytest.fixture(scope="module")
def runtime():
    pytest.importorskip("jax2onnx", reason="jax2onnx, the extra onnx, is not installed, so no ONNX file was written")
    return pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, so no ONNX file was run")


def of_pictures(**options):
    return some_prompt(pg.FunctionGenerator(prior=pg.Prior.standard(DIM), function=as_picture), **options)


def test_a_process_without_jax_makes_the_same_images(runtime, tmp_path):
    prompt = some_prompt(pg.load_generator("dcgan_digiface"))
    assert prompt.export(tmp_path / "face.onnx") == tmp_path / "face.onnx"
    assert [path.name for path in tmp_path.iterdir()] == ["face.onnx"]
    np.save(tmp_path / "eps.npy", pg.Draws.of_prior(prompt.prior, KEY, 5).z)
    subprocess.run([sys.executable, "-c", READER], cwd=tmp_path, check=True, timeout=300)
    images = prompt.sample(KEY, 5)
    assert np.ptp(images, axis=0).max() > 0.1
    for size in (1, 5):
        np.testing.assert_allclose(np.load(tmp_path / f"images_{size}.npy"), images[:size], atol=1e-4)


def test_conditions_are_an_input(runtime, tmp_path):
    prompt = of_pictures(cond_dim=2)
    session = runtime.InferenceSession(prompt.export(tmp_path / "x.onnx"))
    assert {each.name: each.shape[1:] for each in session.get_inputs()} == {"eps": [DIM], "cond": [2]}
    eps, cond = prompt.prior.sample(KEY, 3), jnp.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
    (images,) = session.run(None, {"eps": np.asarray(eps), "cond": np.asarray(cond)})
    np.testing.assert_allclose(images, prompt(KEY, eps, cond), atol=1e-4)
    assert np.abs(images - prompt(KEY, eps, cond[::-1])).max() > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "coupling", "cond_dim": 2, "dials": (0, 1)},
        {"architecture": "coupling", "cond_dim": 2, "conditioning": "equivariant"},
        {"architecture": "allinone"},
        {"architecture": "allinone", "transformer": "spline"},
    ],
    ids=["dials", "equivariant", "allinone", "spline"],
)
def test_every_flow_of_the_library_is_written(runtime, tmp_path, options):
    flow, params = pg.init_flow(KEY, pg.Prior.standard(DIM), num_layers=2, hidden_dim=8, **options)
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(KEY, leaf.shape), params)
    prompt = of_pictures().replace(flow=flow, params=params)
    rows = {"eps": np.asarray(prompt.prior.sample(KEY, 3))}
    rows |= {"cond": np.array([[0.0, 0.0], [1.0, 0.5], [0.0, 1.0]], np.float32)} if flow.cond_dim else {}
    (images,) = runtime.InferenceSession(prompt.export(tmp_path / "x.onnx")).run(None, rows)
    np.testing.assert_allclose(images, prompt(KEY, *rows.values()), atol=1e-4)


def test_noise_of_the_generator_is_refused(runtime, tmp_path):
    with pytest.raises(ValueError, match=r"draws noise of its own.*noise='const', or name the file \.stablehlo\.$"):
        some_prompt(stylegan2.tiny()).export(tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_a_generator_with_constant_noise_is_written(runtime, tmp_path):
    prompt = some_prompt(stylegan2.tiny())
    prompt = prompt.replace(generator=prompt.generator.replace(noise="const"))
    eps = prompt.prior.sample(KEY, 2)
    (images,) = runtime.InferenceSession(prompt.export(tmp_path / "x.onnx")).run(None, {"eps": np.asarray(eps)})
    np.testing.assert_allclose(images, prompt(KEY, eps), atol=1e-4)


def test_what_the_converter_does_not_know_is_said(runtime, tmp_path, monkeypatch):
    import jax2onnx

    def without_rule(*_, **__):
        raise NotImplementedError("[converter] No plugins registered for primitive 'fold'")

    monkeypatch.setattr(jax2onnx, "to_onnx", without_rule)
    with pytest.raises(ValueError, match=r"jax2onnx cannot write this prompt \(.*'fold'\)\. Name the file \.stablehlo"):
        of_pictures().export(tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_makes_other_images_is_not_written(runtime, tmp_path, monkeypatch):
    import jax2onnx

    right = jax2onnx.to_onnx
    monkeypatch.setattr(jax2onnx, "to_onnx", lambda made, **told: right(lambda *rows: made(*rows) + 0.01, **told))
    with pytest.raises(ValueError, match="makes other images"):
        of_pictures().export(tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_without_the_converter_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ImportError, match=r"not installed: pip install 'promptgen_jax\[onnx\]'\.$"):
        of_pictures().export(tmp_path / "x.onnx")
