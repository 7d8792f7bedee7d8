"""Official files of FairFace, CelebA attributes, IR-SE50 and DECA made here, and the images of their golden data.

Golden arrays come from the official PyTorch code with seeded weights at full size; out2 and grad2 are further images.
Outputs are float32 runs. Gradients by the image are of sum(outputs · cos(0.01 n)) or of an energy, in float64 but for
DECA.
"""

import functools
from typing import NamedTuple

import numpy as np
import pytest
from golden import seeded
from official import GOLDEN, load_golden

from convert import celeba_to_flax, deca_to_flax, fairface_to_flax, irse50_to_flax
from promptgen_jax.models import irse, resnet
from promptgen_jax.ops import resample
from promptgen_jax.store import catalogue

torch = pytest.importorskip("torch", reason="torch, which writes and runs the official networks, is not installed")


class Case(NamedTuple):
    """A network in its golden folder.

    Attributes:
      converter: reads the official file.
      folder: the name in the catalogue.
      entry: under which the official file holds the state dict.
      output: golden name of the outputs.
      gradients: golden names of the gradients of their weighted sum and of the official energy.
      input: golden name of what the network sees.
      preprocess: makes it of the images.
      sizes: of the images, by option set.
      output_tolerance: absolute.
      gradient_tolerance: relative L2 in float32, where activations near zero and, above all, the positions that images
        are resized at are rounded; see test_gradient_in_double_precision for what is left without that.
    """

    converter: object
    folder: str
    entry: str
    output: str
    gradients: tuple
    input: str
    preprocess: object
    sizes: dict
    output_tolerance: float
    gradient_tolerance: float


CASES = {
    "fairface_resnet34": Case(
        converter=fairface_to_flax,
        folder="fairface",
        entry="",
        output="out{}_logits_{}",
        gradients=("grad{}_image_{}", "grad{}_debias_race_image_{}"),
        input="mid{}_preprocessed_{}",
        preprocess=resnet.preprocess,
        sizes={"": (64, 224, 256, 1024), "2": (512,)},
        output_tolerance=1e-4,
        gradient_tolerance=3e-2,
    ),
    "celeba_resnet50": Case(
        converter=celeba_to_flax,
        folder="celeba_male",
        entry="model",
        output="out{}_logits_{}",
        gradients=("grad{}_image_{}", "grad{}_class_energy_1_image_{}"),
        input="mid{}_preprocessed_{}",
        preprocess=resnet.preprocess,
        sizes={"": (64, 224, 256, 1024), "2": (512,)},
        output_tolerance=1e-4,
        gradient_tolerance=8e-2,  # 6e-2 for whole images, a little more for the middle of 1024 pixels
    ),
    "irse50": Case(
        converter=irse50_to_flax,
        folder="irse50",
        entry="",
        output="out{}_embedding_{}",
        gradients=("grad{}_embedding_image_{}", "grad{}_id_energy_image_{}"),
        input="mid{}_face112_{}",
        preprocess=irse.crop_face,
        sizes={"": (64, 256, 1024), "2": (200,)},
        output_tolerance=1e-5,
        gradient_tolerance=5e-3,
    ),
    "deca_encoder": Case(
        converter=deca_to_flax,
        folder="deca",
        entry="E_flame",
        output="out{}_params{}",
        gradients=("grad{}_img{}_params",),
        input="out{}_resized{}",
        preprocess=functools.partial(resample.resize_bicubic, size=224),
        sizes={"": (64, 256, 1024)},
        output_tolerance=1e-5,
        gradient_tolerance=5e-3,
    ),
}
every_network = pytest.mark.parametrize("name", CASES)


@functools.cache
def golden(name):
    return load_golden(name)


@functools.cache
def photo(size, k):
    """(size, size, 3) float32; its last wave runs along pixels and tells resizing rules apart."""
    rows, columns = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    i, j, c = rows[..., None], columns[..., None], np.arange(3)
    u, v = (j + 0.5) / size, (i + 0.5) / size
    waves = (
        0.20 * np.sin(2 * np.pi * ((1 + c) * u + 0.7 * k) + 0.9 * c) * np.cos(2 * np.pi * (2 + 0.5 * k) * v - 0.4 * c)
    )
    waves += 0.15 * np.sin(2 * np.pi * (5 * u + 3 * v) + 1.3 * c + k) + 0.10 * np.cos(0.83 * j + 1.91 * i + 0.5 * c + k)
    return (0.5 + waves).astype(np.float32)


@functools.cache
def deca_photo(size, b):
    rows, columns = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    c, u, v = np.arange(3), (columns[..., None] + 0.5) / size, (rows[..., None] + 0.5) / size
    waves = 0.15 * np.sin(2 * np.pi * ((1 + c) * u + 0.5 * b * v + 0.13 * b))
    waves += 0.10 * np.cos(2 * np.pi * ((2 + b) * v - 0.3 * c * u))
    waves += 0.05 * np.sin(2 * np.pi * (150 * u + 131 * v + 0.21 * b))
    return (0.5 + 0.2 * np.cos(1.7 * b + 2.1 * c) + waves).astype(np.float32)


def photos(name, option, size):
    """The images of a golden set, float32 (B, size, size, 3)."""
    if name == "deca_encoder":
        return np.stack([deca_photo(size, b) for b in range(3)])
    if option == "":
        return np.stack([photo(size, k) for k in (0, 1)])
    indices = (2, 3) if name == "irse50" else (2,)
    return np.stack([np.float32(1.2) * photo(size, k) - np.float32(0.1) for k in indices])


def seeded_state(name):
    return seeded.seeded_state_dict(seeded.load_manifest(name, GOLDEN))


def write_official(root, name, state, *, legacy=None, **beside):
    """The file as it is published: the state dict under its entry, or, in the older format, alone."""
    case = CASES[name]
    legacy = not case.entry if legacy is None else legacy
    path = root / catalogue.CHECKPOINTS[case.folder].file
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {key: torch.as_tensor(value) if hasattr(value, "shape") else value for key, value in state.items()}
    torch.save({case.entry: state, **beside} if case.entry else state, path, _use_new_zipfile_serialization=not legacy)
    return path


@functools.cache
def hollow_state(name):
    """All tensors of the official file with one value each, which take no space."""
    return {
        key: torch.tensor(0.01).expand(spec["shape"])
        for key, spec in seeded.load_manifest(name, GOLDEN)["tensors"].items()
    }
