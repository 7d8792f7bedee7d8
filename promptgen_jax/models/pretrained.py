"""Models of transformers as weight folders of ours: one mapping a family, which covers every tensor of the model.

A family is told by `architectures` in config.json. Its file says which options its module has for a configuration, and
which tensors each layer is made of.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from promptgen_jax import checks
from promptgen_jax.models import clip, convnext, preprocess, recipe, resnet, siglip, vit
from promptgen_jax.store import documents, hub

NOT = "not "  # before a label, what lacks it
SINGLE, MULTIPLE = "single_label_classification", "multi_label_classification"
COUNTS = ("layers", "vision_layers", "text_layers", "blocks")  # options that say how many layers there are
COUNTERS = r"|.*\.num_batches_tracked|.*\.position_ids"


class Family(NamedTuple):
    """How a class of transformers becomes a module of ours.

    Attributes:
      module: as in our config.json.
      options_of: options of the module from transformers' configuration; raises ValueError naming what it lacks.
      recipe: of these options.
      ignored: pattern of names that may be there and are not needed.
      renamed: patterns of other versions' names, and what they are called here.
      kind: of the folder, "network" or "clip".
    """

    module: str
    options_of: Callable[[Any], dict]
    recipe: Callable[[dict], dict[str, recipe.Part]]
    ignored: str = ""
    renamed: tuple[tuple[str, str], ...] = ()
    kind: str = "network"


FAMILIES = {
    "ViTForImageClassification": Family(
        "vit.ViT",
        vit.options_of,
        lambda options: vit.classifier_recipe(vit.TRANSFORMERS, options),
        ignored=vit.IGNORED,
        renamed=vit.RENAMED,
    ),
    "ResNetForImageClassification": Family(
        "resnet.Classifier",
        resnet.options_of,
        lambda options: resnet.classifier_recipe(resnet.TRANSFORMERS, options),
    ),
    "ConvNextForImageClassification": Family("convnext.Classifier", convnext.options_of, convnext.classifier_recipe),
    "CLIPModel": Family(
        "clip.CLIP",
        clip.options_of,
        lambda options: clip.clip_recipe(
            clip.TRANSFORMERS, {"vision": options["vision_layers"], "text": options["text_layers"]}
        ),
        kind="clip",
    ),
    "SiglipModel": Family("siglip.SigLIP", siglip.options_of, siglip.siglip_recipe, kind="clip"),
    "Siglip2Model": Family("siglip.SigLIP", siglip.options_of, siglip.siglip_recipe, kind="clip"),
    "SiglipForImageClassification": Family("siglip.Classifier", siglip.classifier_options_of, siglip.classifier_recipe),
    "Siglip2ForImageClassification": Family(
        "siglip.Classifier", siglip.classifier_options_of, siglip.classifier_recipe
    ),
}


def read(name_or_path: str | Path, *, read_archive: Callable | None = None, **settings) -> tuple[dict, dict]:
    """Tree and config of a model of transformers, as a weight folder of ours would hold them.

    Args:
      name_or_path: a folder, or "owner/name" on the Hub, with "@revision" to pin it.
      read_archive: as in `hub.read_tensors`.
      **settings: entries of preprocessor_config.json that differ.

    Raises:
      FileNotFoundError: not to be had, or files of it are missing.
      ValueError: damaged; a model or a setting of it that is not computed here, by its name; tensors that are missing
        or left over.
    """
    folder = hub.find(name_or_path)
    family, config, options = read_config(folder)
    way = preprocess.read(folder, **settings)
    if family.kind == "clip":
        options |= {"mean": list(way.mean), "std": list(way.std)}
        way = way.without_colours()
    tensors, checksum = hub.read_tensors(folder, read_archive)
    _check_sizes(folder / "config.json", options, tensors)
    tensors = {_renamed(name, family.renamed): value for name, value in tensors.items()}
    ignored = [name for name in tensors if re.fullmatch(family.ignored + COUNTERS, name)]
    facts = {
        "kind": family.kind,
        "architecture": config.architectures[0],
        "module": family.module,
        "options": options,
        "attributes": {} if family.kind == "clip" else attributes_of(config),
        "independent": config.problem_type == MULTIPLE,
        "preprocess": way.to_json(),
        "name": folder.name if Path(name_or_path).is_dir() else str(name_or_path),
        "sha256": checksum,
        "license": hub.license_of(folder),
    }
    return recipe.build_tree(folder, tensors, family.recipe(options), ignored), facts


def read_config(folder: Path) -> tuple[Family, Any, dict]:
    """The family of a model, its configuration, and the options of the module for it.

    Raises:
      FileNotFoundError: it has none.
      ValueError: damaged, or of a class that is not computed here, with those that are.
    """
    from transformers import AutoConfig

    path, advice = folder / "config.json", "Download it again."
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, which says what the model is. Download the whole folder.")
    documents.read(path, documents.Pretrained, advice=advice)
    with documents.one_sentence(path, "not a configuration that transformers reads", advice=advice, foreign=True):
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    architecture = (config.architectures or [type(config).__name__])[0]
    if architecture not in FAMILIES:
        raise ValueError(
            f"{path}: {architecture} is not computed here. {checks.nearest(architecture, FAMILIES)} Use another model, "
            "or convert it yourself, see docs/extending.md."
        )
    family = FAMILIES[architecture]
    with documents.one_sentence(path, "not a configuration that can be computed here", advice=advice):
        try:
            recipe.refuse(config, quantization_config=(None,))
            if family.kind == "network":
                recipe.refuse(config, problem_type=(None, SINGLE, MULTIPLE))
                attributes_of(config)
            return family, config, family.options_of(config)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _check_sizes(path: Path, options: dict, tensors: dict[str, np.ndarray]) -> None:
    """Raises ValueError if a configuration asks for more than the tensors hold, before any of that is made."""
    most = {name: len(tensors) if name in COUNTS else sum(each.size for each in tensors.values()) for name in options}
    for name, value in options.items():
        sizes = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int)]
        if sizes and not sum(sizes) <= most[name]:
            raise ValueError(f"{path}: {name} is {value}, but there are {len(tensors)} tensors. Download it again.")


def labels_of(config) -> list[str]:
    """The labels of a classifier, in the order of its logits; equal ones are told apart by their number."""
    labels = [str(config.id2label[index]) for index in range(config.num_labels)]
    return [label if labels.count(label) == 1 else f"{label} ({index})" for index, label in enumerate(labels)]


def attributes_of(config) -> dict[str, list[str]]:
    """Labels by attribute: one, "label", or, of a classifier that finds any number of labels at once, one of each."""
    labels = labels_of(config)
    if config.problem_type == MULTIPLE:
        return {label: [f"{NOT}{label}", label] for label in labels}
    return {"label": labels}


def describe(folder: Path) -> str:
    """A line on a model in the cache: class, labels, size, licence, and whether it can be used here."""
    try:
        family, config, _ = read_config(folder)
    except ValueError as error:
        return f"cached, not usable: {error}"
    labels = [] if family.kind == "clip" else labels_of(config)
    more = ", …" if len(labels) > 10 else ""
    what = f"{len(labels)} labels: {', '.join(labels[:10])}{more}" if labels else "images and texts"
    size = hub.size_of(folder) / 2**20
    return (
        f"cached: {config.architectures[0]}, {what}, {size:.1f} MiB, licence {hub.license_of(folder) or 'not stated'}"
    )


def _renamed(name: str, patterns: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name
