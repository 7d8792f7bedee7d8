"""Converts the user's own licensed FLAME model, with DECA's landmarks beside it, to a weight folder.

    python convert/flame_to_flax.py generic_model.pkl ported_weights/flame

FLAME 2020 is published at flame.is.tue.mpg.de after registration; `landmark_embedding.npy`, from the data folder of
YadiraF/DECA, has to lie beside it. Both are pickles, which are read by an unpickler that makes arrays only.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np

from convert import array_pickle, reading
from promptgen_jax.models import network
from promptgen_jax.models.flame import COEFFICIENTS, PARENTS
from promptgen_jax.store import weights

LANDMARKS = "landmark_embedding.npy"
IDENTITY = 300  # columns of shape before those of expression
KINEMATICS = "kintree_table"


def recipe() -> dict[str, reading.Part]:
    """Targets of `flame.FLAME`."""
    return {
        "template": _floats("v_template"),
        "basis": reading.Part(("shapedirs",), _used_columns),
        "pose_basis": reading.Part(
            ("posedirs",), lambda array: np.ascontiguousarray(array.transpose(2, 0, 1), np.float32)
        ),
        "regressor": _floats("J_regressor"),
        "weights": _floats("weights"),
        "triangles": _integers("f"),
        "static_triangles": _integers("static_lmk_faces_idx"),
        "static_coordinates": _floats("static_lmk_bary_coords"),
        "contour_triangles": _integers("dynamic_lmk_faces_idx"),
        "contour_coordinates": _floats("dynamic_lmk_bary_coords"),
        "full_triangles": reading.Part(("full_lmk_faces_idx",), lambda array: array[0].astype(np.int32)),
        "full_coordinates": reading.Part(("full_lmk_bary_coords",), lambda array: array[0].astype(np.float32)),
    }


def _floats(name: str) -> reading.Part:
    return reading.Part((name,), lambda array: np.ascontiguousarray(array, np.float32))


def _integers(name: str) -> reading.Part:
    return reading.Part((name,), lambda array: array.astype(np.int32))


def _used_columns(array: np.ndarray) -> np.ndarray:
    parts = array[..., : COEFFICIENTS["shape"]], array[..., IDENTITY : IDENTITY + COEFFICIENTS["exp"]]
    return np.concatenate(parts, axis=-1).astype(np.float32)


@reading.one_door
def convert(source: str | Path) -> tuple[dict, dict]:
    """Reads both official files.

    Returns:
      (tree, config) for `promptgen_jax.models.flame.FLAME`.

    Raises:
      FileNotFoundError, ValueError: one of them missing, damaged, or another model.
    """
    source = Path(source)
    beside = source.parent / LANDMARKS
    for path in (source, beside):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file. Put {LANDMARKS} of DECA beside generic_model.pkl of FLAME.")
    arrays = array_pickle.read(source) | array_pickle.read(beside)
    if tuple(np.asarray(arrays.get(KINEMATICS, [()])[0]).astype(np.int32)) != PARENTS:
        raise ValueError(f"{source}: its joints are not those of FLAME. Pass generic_model.pkl of FLAME 2020.")
    needed = {name for part in recipe().values() for name in part.sources}
    tree = reading.build_tree(source, arrays, recipe(), arrays.keys() - needed)
    options = {"num_vertices": len(tree["template"]), "num_faces": len(tree["triangles"])}
    config = {
        "kind": "mesh",
        "module": "flame.FLAME",
        "options": options,
        "image_size": 0,
        "about": "FLAME: a head mesh from shape, expression and pose, with the landmarks of DECA.",
    }
    example = np.zeros((1, sum(COEFFICIENTS.values())), np.float32)
    expected = network.expected_tree(network.load_module(config), example)
    weights.check_tree(str(source), tree, expected, converter="the converter on the right file")
    return tree, config


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return reading.run(convert, argv, "Converts FLAME to a weight folder.", script="flame_to_flax.py")


if __name__ == "__main__":
    sys.exit(main())
