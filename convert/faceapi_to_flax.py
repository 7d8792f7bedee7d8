"""Converts the expression and the age-and-gender classifier of @vladmandic/face-api to Flax.

    python convert/faceapi_to_flax.py face_expression_model-weights_manifest.json ported_weights/faceapi_expression
    python convert/faceapi_to_flax.py age_gender_model-weights_manifest.json ported_weights/faceapi_age_gender

The .bin file of the package must lie beside the manifest. Which of the two it is shows in the tensor names.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convert import reading, tfjs

EXPRESSIONS = ["neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised"]
GENDERS = ["male", "female"]


def convolution(target: str, source: str, *, weight: str = "filters") -> dict[str, reading.Part]:
    """An ordinary convolution or dense layer."""
    return {
        f"{target}/kernel": reading.keep(f"{source}/{weight}"),
        f"{target}/bias": reading.keep(f"{source}/bias"),
    }


def separable(target: str, source: str) -> dict[str, reading.Part]:
    """A depthwise and a pointwise convolution."""
    return {
        f"{target}/depthwise/kernel": tfjs.depthwise(f"{source}/depthwise_filter"),
        f"{target}/pointwise/kernel": reading.keep(f"{source}/pointwise_filter"),
        f"{target}/pointwise/bias": reading.keep(f"{source}/bias"),
    }


def expression_recipe() -> dict[str, reading.Part]:
    """Targets of `faceapi.Expression`; names are those of the package."""
    parts = convolution("fc", "fc", weight="weights")
    for block in range(4):
        for index in range(4):
            name = f"dense{block}/conv{index}"
            parts |= convolution(name, name) if block == index == 0 else separable(name, name)
    return parts


def age_gender_recipe() -> dict[str, reading.Part]:
    """Targets of `faceapi.AgeGender`."""
    reductions = ["entry_flow/reduction_block_0", "entry_flow/reduction_block_1", "exit_flow/reduction_block"]
    parts = convolution("conv_in", "entry_flow/conv_in")
    for index, source in enumerate(reductions):
        parts |= separable(f"reduction{index}/separable0", f"{source}/separable_conv0")
        parts |= separable(f"reduction{index}/separable1", f"{source}/separable_conv1")
        parts |= convolution(f"reduction{index}/expansion", f"{source}/expansion_conv")
    for block in range(2):
        for index in range(3):
            source = f"middle_flow/main_block_{block}/separable_conv{index}"
            parts |= separable(f"main{block}/separable{index}", source)
    parts |= separable("separable", "exit_flow/separable_conv")
    parts |= convolution("gender", "fc/gender", weight="weights")
    return parts | convolution("age", "fc/age", weight="weights")


@reading.one_door
def convert(source: str | Path) -> tuple[dict, dict]:
    """Reads a `*-weights_manifest.json` and the shards beside it.

    Returns:
      (tree, config) for `promptgen_jax.models.faceapi`.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or another model.
    """
    tensors = tfjs.read_tfjs(source)
    expression = any(name.startswith("dense0/") for name in tensors)
    if expression:
        name, file, module = "faceapi_expression", "face_expression_model", "faceapi.Expression"
        recipe, attributes = expression_recipe(), {"expression": EXPRESSIONS}
    else:
        name, file, module = "faceapi_age_gender", "age_gender_model", "faceapi.AgeGender"
        recipe, attributes = age_gender_recipe(), {"gender": GENDERS}
    return reading.checked_network(
        source,
        reading.build_tree(source, tensors, recipe),
        name=name,
        module=module,
        attributes=attributes,
        license="MIT (Vincent Mühler; packaged by Vladimir Mandic)",
        source=f"package @vladmandic/face-api 1.7.15, model/{file}-weights_manifest.json and {file}.bin",
        converter=f"python convert/faceapi_to_flax.py {file}-weights_manifest.json ported_weights/{name}",
    )


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return reading.run(convert, argv, "Converts a face-api classifier to a weight folder.")


if __name__ == "__main__":
    sys.exit(main())
