"""FLAME through its converter: golden meshes, landmarks and gradients; pickles that ask for code are refused."""

import pickle
import sys
import types as python_types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from golden import seeded
from official import GOLDEN, assert_close, load_golden

from convert import array_pickle, flame_to_flax
from promptgen_jax.models import flame, network

torch = pytest.importorskip("torch", reason="torch, which writes and runs the official networks, is not installed")

NAME = "flame_lbs"
ARRAYS = load_golden(NAME)


class Ch:
    """Pickled under the name of chumpy's variable."""

    def __init__(self, x):
        self.x = x


def write_official(folder, **changes):
    """Both files in the layout of the official ones: chumpy and sparse arrays, tensors inside an object array."""
    state = seeded.seeded_state_dict(seeded.load_manifest(NAME, GOLDEN)) | changes
    landmarks = {key: value for key, value in state.items() if "_lmk_" in key}
    model = {key: value for key, value in state.items() if key not in landmarks}
    model["f"] = model["f"].astype(np.uint32)
    model["kintree_table"] = model["kintree_table"].astype(np.uint32)
    model["J_regressor"] = scipy.sparse.csc_matrix(model["J_regressor"].astype(np.float64))
    chumpy = python_types.ModuleType("chumpy.ch")
    chumpy.Ch, Ch.__module__ = Ch, "chumpy.ch"
    sys.modules["chumpy"], sys.modules["chumpy.ch"] = python_types.ModuleType("chumpy"), chumpy
    try:
        model["shapedirs"] = Ch(model["shapedirs"].astype(np.float64))
        (folder / "generic_model.pkl").write_bytes(pickle.dumps(model | {"bs_style": "lbs"}, protocol=2))
    finally:
        del sys.modules["chumpy"], sys.modules["chumpy.ch"]
    for name in ("dynamic_lmk_faces_idx", "dynamic_lmk_bary_coords"):
        landmarks[name] = torch.tensor(landmarks[name])
    np.save(folder / "landmark_embedding.npy", np.array(landmarks, dtype=object), allow_pickle=True)
    return folder / "generic_model.pkl"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """(module, params) of a converted folder."""
    root = tmp_path_factory.mktemp("flame")
    assert flame_to_flax.main([str(write_official(root)), str(root / "flame")]) == 0
    example = jax.ShapeDtypeStruct((1, 162), jnp.float32)
    module, params, config = network.load_params(root / "flame", kind="mesh", example=example)
    assert config["name"] == "flame"
    return module, params


@pytest.fixture(scope="module")
def run(mesh):
    module, params = mesh
    compiled = jax.jit(lambda params, coefficients: module.apply({"params": params}, coefficients))
    return lambda coefficients: compiled(params, coefficients)


def coefficients(eyes=True):
    parts = [ARRAYS[f"in_{name}"] for name in ("shape", "exp", "pose", "eye")]
    return jnp.concatenate([*parts[:3], parts[3] if eyes else 0 * parts[3]], axis=1)


@pytest.mark.usefixtures("highest_precision")
class TestGolden:
    def test_flame_lbs_meshes_and_landmarks(self, run):
        outputs = run(coefficients())
        for name, expected in (
            ("vertices", "out_vertices"),
            ("joints", "mid_posed_joints"),
            ("landmarks2d", "out_landmarks2d_source"),
            ("landmarks3d", "out_landmarks3d"),
        ):
            assert_close(name, outputs[name], ARRAYS[expected], 1e-5)
        points = flame.project(outputs["landmarks2d"], ARRAYS["in_cam"])
        assert_close("projected", points[..., :2], ARRAYS["out_landmarks2d_projected"], 1e-5)
        moved = flame.project(outputs["vertices"][:, :64], ARRAYS["in_cam"])
        assert_close("vertices under the camera", moved, ARRAYS["out_trans_verts_first64"], 1e-5)
        still = run(coefficients(eyes=False))["vertices"][:, ::16]
        assert_close("eyes at rest", still, ARRAYS["out2_vertices_default_eye_every16"], 1e-5)

    def test_flame_lbs_gradients(self, run):
        def total(coefficients):
            vertices = run(coefficients)["vertices"]
            return jnp.sum(vertices * jnp.asarray(np.cos(0.01 * np.arange(vertices.size))).reshape(vertices.shape))

        gradient = jax.grad(total)(coefficients())
        for name, part in zip(
            ("shape", "exp", "pose", "eye"), jnp.split(gradient, (100, 150, 156), axis=1), strict=True
        ):
            assert_close(f"gradient by {name}", part, ARRAYS[f"grad_{name}"], 2e-4)


def test_no_rotation_has_a_finite_gradient(run):
    gradient = jax.grad(lambda c: jnp.sum(run(c)["vertices"] ** 2))(jnp.zeros((1, 162)))
    assert np.all(np.isfinite(gradient))
    assert np.abs(gradient[:, 150:153]).max() > 0


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.parametrize("where", ["generic_model.pkl", "landmark_embedding.npy"])
def test_pickles_that_ask_for_code_are_refused(tmp_path, where, capsys):
    write_official(tmp_path)
    if where.endswith("pkl"):
        (tmp_path / where).write_bytes(pickle.dumps({"v_template": Evil()}))
    else:
        np.save(tmp_path / where, np.array({"full_lmk_faces_idx": Evil()}, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=rf"{where}.*print.*refused"):
        flame_to_flax.convert(tmp_path / "generic_model.pkl")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kintree_table": np.array([[4294967295, 0, 1, 2, 3], range(5)])}, "joints are not those of FLAME"),
        ({"posedirs": np.zeros((5023, 3, 30), np.float32)}, "pose_basis"),
        ({"weights": np.full((5023, 5), np.nan, np.float32)}, "weights holds NaN"),
    ],
    ids=["joints", "shape", "nan"],
)
def test_other_models_are_refused(tmp_path, changes, match):
    with pytest.raises(ValueError, match=match):
        flame_to_flax.convert(write_official(tmp_path, **changes))


def test_missing_and_damaged_files(tmp_path):
    source = write_official(tmp_path)
    (tmp_path / "cut.pkl").write_bytes(source.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="not a complete pickle"):
        array_pickle.read(tmp_path / "cut.pkl")
    (tmp_path / "landmark_embedding.npy").unlink()
    with pytest.raises(FileNotFoundError, match="Put landmark_embedding.npy of DECA beside"):
        flame_to_flax.convert(source)
