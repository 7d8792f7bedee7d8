"""`Network`: a frozen ported network on images, as controls and judges use it.

Which Linen module reads a weight folder is written in its config.json:
`{"kind": "network", "module": "faceapi.AgeGender", "options": {}, "attributes": {"gender": ["male", "female"]}}`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax import checks
from promptgen_jax.models import pretrained
from promptgen_jax.models.layers import MAPS
from promptgen_jax.models.preprocess import Preprocess
from promptgen_jax.ops import products
from promptgen_jax.store import documents, hub, weights
from promptgen_jax.types import precision_field


class Network(struct.PyTreeNode):
    """A frozen network from images (B, H, W, 3) in [0, 1] to a dict of outputs.

    For every name in `attributes` the output of that name holds logits (B, K) in the order of its labels; their
    softmax is P(label | image). Other outputs (pose in degrees, embeddings) are described by the module, which reads
    what `preprocess` makes of the images; most modules do that themselves. `precision` is that of its products, see
    `ops.products.arithmetic`.

    If the labels of the module are `independent`, as of a classifier that has learnt to find any number of them at
    once, each is an attribute of its own, with the logits (0, x) of "not" and the label: their softmax is sigmoid(x).
    """

    weights: Any = struct.field(repr=False)
    module: nn.Module = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False)
    checksum: str = struct.field(pytree_node=False)
    attributes: tuple[tuple[str, tuple[str, ...]], ...] = struct.field(pytree_node=False)
    license: str = struct.field(pytree_node=False, default="")
    preprocess: Preprocess | None = struct.field(pytree_node=False, default=None)
    independent: bool = struct.field(pytree_node=False, default=False)
    precision: str = precision_field()

    def __post_init__(self):
        """Checks the precision, also that of `replace`."""
        products.check(self.name, self.precision, self.weights, taken=_precisions(self.module))

    def __call__(self, images) -> dict[str, jax.Array]:
        """All outputs by name. Raises ValueError or TypeError for images of a wrong shape, dtype or range."""
        pixels = self._read(images)
        with products.arithmetic(self.precision):
            outputs = self.module.apply({"params": self.weights}, pixels)
        if not self.independent:
            return outputs
        logits = outputs.pop("label")
        pairs = jnp.stack([jnp.zeros_like(logits), logits], axis=-1)
        return outputs | {attribute: pairs[:, index] for index, (attribute, _) in enumerate(self.attributes)}

    def maps(self, images) -> tuple[jax.Array, ...]:
        """What its layers see, (B, ..., C) each, of a module that sows `maps` (`layers.MAPS`); () of another.

        Raises:
          ValueError, TypeError: images of a wrong shape, dtype or range.
        """
        pixels = self._read(images)
        with products.arithmetic(self.precision):
            _, seen = self.module.apply({"params": self.weights}, pixels, mutable=["intermediates"])
        return seen.get("intermediates", {}).get(MAPS, ())

    def _read(self, images):
        """Images as the module reads them."""
        checks.check_images(self.name, images)
        return self.preprocess(images) if self.preprocess else images

    def labels(self, attribute: str) -> tuple[str, ...]:
        """The labels of an attribute. Raises ValueError with the nearest match if there is none."""
        known = dict(self.attributes)
        checks.check_known(f"{self.name}: attribute", attribute, known)
        return known[attribute]

    def attribute_of(self, label: str) -> str:
        """The one attribute that has a label. Raises ValueError with the nearest match, or if several have it."""
        checks.check_known(f"{self.name}: label", label, {each for _, labels in self.attributes for each in labels})
        found = [attribute for attribute, labels in self.attributes if label in labels]
        if len(found) > 1:
            raise ValueError(f"{self.name}: {label!r} is a label of {', '.join(found)}. Say which: attribute=...")
        return found[0]

    def label_index(self, attribute: str, label: str) -> int:
        """The column of a label in the logits of an attribute."""
        labels = self.labels(attribute)
        checks.check_known(f"{self.name}: label of {attribute}", label, labels)
        return labels.index(label)

    def that_returns(self, output: str) -> Network:
        """Itself. Raises ValueError with the nearest match if there is no output of that name."""
        outputs = jax.eval_shape(self, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
        checks.check_known(f"{self.name}: output", output, outputs)
        return self

    def log_probs(self, images, attribute: str) -> jax.Array:
        """Log P(label | image), (B, K) in nats."""
        self.labels(attribute)
        return jax.nn.log_softmax(self(images)[attribute], axis=-1)


def load_module(config: dict) -> nn.Module:
    """The Linen module named by a config.json, e.g. `faceapi.AgeGender` of `promptgen_jax.models`."""
    file, _, class_name = config["module"].partition(".")
    try:
        found = getattr(importlib.import_module(f"promptgen_jax.models.{file}"), class_name)
        if not issubclass(found, nn.Module):
            raise TypeError
    except (ImportError, AttributeError, TypeError):
        raise ValueError(
            f"config.json: {config['module']!r} is no network of promptgen_jax.models. Convert the checkpoint again."
        ) from None
    options = {name: _hashable(value) for name, value in config.get("options", {}).items()}
    known = {field.name for field in dataclasses.fields(found)} - {"parent", "name"}
    for option in options:
        checks.check_known(f"config.json: option of {config['module']}", option, known)
    return found(**options)


def _hashable(value):
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def expected_tree(module: nn.Module, example: Any) -> dict:
    """Shapes of what a weight folder of this module holds: its parameters, or, if it has buffers, both by name."""
    leaves, tree = jax.tree.flatten(example)
    return _expected_tree(module, tree, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves))


@functools.lru_cache(maxsize=64)
def _expected_tree(module: nn.Module, tree: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> dict:
    variables = jax.eval_shape(module.init, jax.random.key(0), jax.tree.unflatten(tree, leaves))
    return variables if "buffers" in variables else variables["params"]


def load_params(
    name_or_path: str | Path, *, kind: str | tuple[str, ...], example: Any, part: str = "", **settings
) -> tuple[nn.Module, dict, dict]:
    """Module, checked float32 weights and config of a weight folder, or of a model of transformers.

    Args:
      name_or_path: name under ported_weights, a folder, or, of networks and CLIPs, "owner/name" on the Hub.
      kind: "network", "generator" or "clip", or several of them; anything else in the folder is refused.
      example: array or ShapeDtypeStruct that the module can be initialised with, to verify every shape; or a function
        of the module that gives it.
      part: the one entry of the weights to keep, such as `text` of a CLIP; of a weight folder no other is read.
      **settings: as in `pretrained.read`, of models of transformers only.

    Raises:
      FileNotFoundError, ValueError: folder missing, altered, of another kind, or with wrong keys or shapes.
    """
    foreign = hub.is_pretrained(name_or_path)
    if foreign:
        tree, config = pretrained.read(name_or_path, **settings)
    else:
        config = weights.read_config(name_or_path)
    kinds = (kind,) if isinstance(kind, str) else kind
    if config["kind"] not in kinds:
        raise ValueError(
            f"{name_or_path}: holds a {config['kind']}, expected a {' or '.join(kinds)}. Choose another folder of "
            "weights."
        )
    if not foreign:
        tree, config = weights.load_weights(name_or_path, part=part)
    converter = config.get("converter", "the converter")
    advice = f"Run {converter} again."
    with documents.one_sentence(name_or_path, "no network can be made of its config.json", advice=advice):
        module = load_module(config)
        expected = expected_tree(module, example(module) if callable(example) else example)
    if part:
        tree, expected = ({part: each[part]} for each in (tree, expected))
    weights.check_tree(str(name_or_path), tree, expected, converter=converter)
    tree = jax.tree.map(lambda leaf: leaf.astype(np.float32) if leaf.dtype == np.float16 else leaf, tree)
    tree = jax.device_put(tree)  # where jnp.asarray compiles a program for every shape
    return module, tree, config


def load_network(network: str | Path | Network, *, precision: str = "", **options) -> Network:
    """Loads a network: a ported one by name (`faceapi_expression`) or folder, or a model of transformers.

    Of transformers are read `ViTForImageClassification`, `ResNetForImageClassification`,
    `ConvNextForImageClassification`, `SiglipForImageClassification`, and the image towers of CLIP and SigLIP. The
    labels of their one attribute, "label", are those of config.json, or each label is an attribute of its own, if any
    number of them may be there at once; images go in as preprocessor_config.json says.

    Args:
      network: name under ported_weights; a folder; "owner/name" on the Hugging Face Hub, with "@revision" to pin it; or
        a `Network`, which is taken as it is.
      precision: of its products: "float32", "tf32" or "bfloat16", whose kernels are also stored in it; left out that of
        the `Network`, or float32.
      **options: fields of its module that differ from config.json and leave the weights as they are, e.g. `input_size`
        of `faceres` or `symmetric` of `irse50`; of a model of transformers, entries of preprocessor_config.json, e.g.
        `size={"height": 96, "width": 96}`.

    Raises:
      FileNotFoundError, ValueError: as `load_params`; unknown option, with the nearest match.
      TypeError: neither a name nor a network.
    """
    return in_precision(_load_network(network, options), precision)


def in_precision(part: Any, precision: str) -> Any:
    """A network or generator with products in another precision, in which kernels are then stored; "" changes nothing.

    Raises:
      ValueError: a precision that it does not take, with the nearest match, or one above that of stored kernels.
    """
    if not precision:
        return part
    made = part.replace(precision=precision)
    return made.replace(weights=products.halved(made.weights)) if precision == "bfloat16" else made


def _load_network(network: str | Path | Network, options: dict) -> Network:
    if not isinstance(network, (str, os.PathLike)):
        if not isinstance(network, Network):
            raise TypeError(
                f"network is a {type(network).__name__}; expected a name of weights, a folder, or what load_network "
                "returns."
            )
        return network.replace(module=_with_options(network.name, network.module, options))
    settings = options if hub.is_pretrained(network) else {}
    module, tree, config = load_params(network, kind=("network", "clip"), example=_example, **settings)
    if config["kind"] == "clip":
        return image_tower(module, tree, config)
    return _network(module if settings else _with_options(network, module, options), tree, config)


def image_tower(module: nn.Module, tree: dict, config: dict) -> Network:
    """The image tower of a CLIP or SigLIP, as `load_params` gives one: a network that returns an `embedding`.

    Unless its config says how images go in, they are resized to its size bicubically, whatever their aspect.
    """
    tower = _network(module.vision_tower(), tree["vision"], config)
    whole = Preprocess(rule="exact", size=2 * (module.image_size,), filter="bicubic")
    return tower if tower.preprocess else tower.replace(preprocess=whole)


def _network(module: nn.Module, tree: dict, config: dict) -> Network:
    return Network(
        weights=tree,
        module=module,
        name=config["name"],
        checksum=config["sha256"],
        attributes=tuple((attribute, tuple(labels)) for attribute, labels in config.get("attributes", {}).items()),
        license=config.get("license", ""),
        preprocess=Preprocess.from_json(config["preprocess"]) if "preprocess" in config else None,
        independent=config.get("independent", False),
    )


def _with_options(where: str | Path, module: nn.Module, options: dict) -> nn.Module:
    for option in options:
        known = {field.name for field in dataclasses.fields(module)} - {"parent", "name"}
        checks.check_known(f"{where}: option", option, known)
    return module.clone(**options)


def _precisions(module: nn.Module) -> tuple[str, ...]:
    """Those that it takes: all, but of a module that says which."""
    return getattr(module, "precisions", products.PRECISIONS)


def _example(module: nn.Module):
    """What a network is initialised with: 64 pixels a side, or the batch of a module that says one."""
    return module.example() if hasattr(module, "example") else jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
