"""Converts BigGAN-deep generators in Hugging Face's form, `biggan-deep-<size>-pytorch_model.bin`.

    python convert/biggan_to_flax.py biggan-deep-512-pytorch_model.bin ported_weights/biggan_deep_512

The configuration `biggan-deep-<size>-config.json` is expected beside it; or pass a folder with pytorch_model.bin and
config.json. Spectral normalisation is folded into the kernels, with the stored vectors as they are.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convert import family, reading
from promptgen_jax.models.biggan import EPSILON
from promptgen_jax.store import disk

TENSORS, CONFIG = "pytorch_model.bin", "config.json"
ATTENTION = {"query": "theta", "key": "phi", "value": "g", "output": "o_conv"}
COLOURS = 3  # of the 128 channels of the last convolution; the others are never used


def sigma(weight, u, v) -> float:
    """The spectral norm as PyTorch has it in evaluation mode, u · (W v), of (out, ...) weights."""
    return float(np.float64(u) @ (weight.reshape(len(weight), -1).astype(np.float64) @ np.float64(v)))


def spectral(name: str) -> tuple[str, ...]:
    """What a normalised weight is made of."""
    return tuple(f"{name}.weight{part}" for part in ("_orig", "_u", "_v"))


def normalised(weight, u, v) -> np.ndarray:
    """A dense layer (out, in) as (in, out), or a convolution OIHW as HWIO, divided by its spectral norm."""
    if u.shape != (len(weight),) or v.shape != (weight.size // len(weight),):
        raise ValueError("vectors of another length")
    weight = weight / sigma(weight, u, v)
    return np.float32(weight.T if weight.ndim == 2 else weight.transpose(2, 3, 1, 0))


def layer(name: str, *, keep: int | None = None) -> reading.Part:
    """A normalised layer with bias; of its outputs the first `keep`."""

    def make(weight, u, v, bias):
        return {"kernel": normalised(weight, u, v)[..., :keep], "bias": bias[:keep]}

    return reading.Part((*spectral(name), f"{name}.bias"), make)


def _statistics(target: str, name: str) -> dict[str, reading.Part]:
    buffers = target.replace("params", "buffers")
    return {
        f"{buffers}/means": reading.keep(f"{name}.running_means"),
        f"{buffers}/variances": reading.keep(f"{name}.running_vars"),
    }


def recipe(num_blocks: int, attention_position: int) -> dict[str, reading.Part]:
    """Parameters and buffers of `models.biggan.BigGAN` by target.

    Args:
      num_blocks: without the attention.
      attention_position: its index in the official list of layers.
    """
    parts = {
        "buffers/embeddings": reading.Part(("embeddings.weight",), lambda weight: weight.T),
        "params/input": layer("generator.gen_z"),
        "params/norm/scale": reading.keep("generator.bn.weight"),
        "params/norm/offset": reading.keep("generator.bn.bias"),
        **_statistics("params/norm", "generator.bn"),
        "params/to_rgb": layer("generator.conv_to_rgb", keep=COLOURS),
    }
    for index in range(num_blocks):
        target = f"params/block_{index}"
        name = f"generator.layers.{index + (index >= attention_position)}"
        for number in range(4):
            parts[f"{target}/conv{number}"] = layer(f"{name}.conv_{number}")
            norm, source = f"{target}/norm{number}", f"{name}.bn_{number}"
            parts |= _statistics(norm, source)
            for kind in ("scale", "offset"):
                parts[f"{norm}/{kind}/kernel"] = reading.Part(spectral(f"{source}.{kind}"), normalised)
    attention = f"generator.layers.{attention_position}"
    for target, source in ATTENTION.items():
        part = reading.Part(spectral(f"{attention}.snconv1x1_{source}"), normalised)
        parts[f"params/attention/{target}/kernel"] = part
    parts["params/attention/weight"] = reading.Part((f"{attention}.gamma",), lambda gamma: gamma.reshape(()))
    return parts


def read_options(path: Path) -> dict:
    """Fields of `models.biggan.BigGAN` from the official config.json.

    Raises:
      FileNotFoundError, ValueError: no such file, damaged, or an option that is not supported.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. Download it from where the tensors are, and put it beside them."
        )
    try:
        config = disk.read_json(path, advice="Download it again.")
        width, layers = config["channel_width"], config["layers"]
        options = {
            "channels": [width * layers[0][1], *(width * last for _, _, last in layers)],
            "upsampling": [bool(upsample) for upsample, _, _ in layers],
            "attention_position": config["attention_layer_position"],
            "embedding_dim": config["z_dim"],
            "num_classes": config["num_classes"],
            "num_statistics": config["n_stats"],
        }
        firsts, epsilon = [width * first for _, first, _ in layers], config["eps"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{path}: not the configuration of a BigGAN ({type(error).__name__}: {error}). Download it again."
        ) from None
    if firsts != options["channels"][:-1] or epsilon != EPSILON:
        raise ValueError(f"{path}: blocks that do not fit each other, or eps {epsilon} instead of {EPSILON}.")
    return options


@reading.one_door
def convert(source: str | Path) -> tuple[dict, dict]:
    """Reads an official BigGAN-deep.

    Args:
      source: tensors with their configuration beside them, or the folder of both.

    Returns:
      (tree, config) for `promptgen_jax.models.biggan.BigGAN`.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or another model.
    """
    source = Path(source)
    file = source / TENSORS if source.is_dir() else source
    content = reading.read_torch(file)
    family.check_family(file, content if isinstance(content, dict) else {}, "BigGAN-deep")
    tensors = reading.read_state(file, "biggan-deep-512-pytorch_model.bin")
    options = read_options(file.parent / file.name.replace(TENSORS, CONFIG))
    parts = recipe(len(options["upsampling"]), options["attention_position"])
    tree = reading.build_tree(file, tensors, parts)
    config = {
        "kind": "generator",
        "adapter": "biggan",
        "module": "biggan.BigGAN",
        "options": options,
        "latent_dim": 2 * options["embedding_dim"],
        "image_size": 4 << sum(options["upsampling"]),
        "file": file.name if source.is_dir() else "",
    }
    reading.check_shapes(file, tree, config, (1, config["latent_dim"]))
    count = sum(leaf.size for leaf in jax.tree.leaves(tree["params"]))
    size, dim = config["image_size"], options["embedding_dim"]
    config["about"] = (
        f"A BigGAN-deep generator: noise on R^{dim} and a class embedding on R^{dim} to {size} x {size} RGB. {count:,} "
        "parameters, float32, and as buffers the class embeddings and the batch-norm statistics of "
        f"{options['num_statistics']} truncations."
    )
    return tree, config


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return reading.run(
        convert, argv, "Converts a BigGAN-deep generator to a weight folder.", script="biggan_to_flax.py"
    )


if __name__ == "__main__":
    sys.exit(main())
