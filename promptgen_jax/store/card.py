"""The card of a saved prompt: a README.md that says what it does, how it was made and how well it works.

Its front matter is what the Hugging Face Hub reads.
"""

from __future__ import annotations

import json
import re

import numpy as np

TRAINING = "Training"
LIMITS = (
    "The prompt repeats the errors of the models that controlled it: what was reached is what they see, not what is "
    "there. It holds the flow alone; the generator keeps its own licence and has to be there, and its limits remain."
)


def card(prompt) -> str:
    """The text of README.md, Markdown with YAML front matter, of a `Prompt` with the flows below it."""
    stack, generator = prompt.stack()
    terms = getattr(generator, "license", "") or "not stated"
    front = {
        "library_name": "promptgen_jax",
        "license": "other",
        "license_name": re.sub("[^a-z0-9.-]+", "-", f"{generator.name}-terms".lower()),  # the Hub wants an id
        "tags": ["promptgen", "generative-visual-prompt", "jax", "flax"],
    }
    matter = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in front.items()]
    lines = [
        "\n".join(["---", *matter, "---"]),
        f"# {prompt.name}",
        f"An invertible flow on the latents of the generator `{generator.name}`, made with promptgen_jax. Flow and "
        "generator together sample from a controlled distribution, without any control model:",
        "```python\nimport jax\nimport promptgen_jax as pg\n\n"
        'prompt = pg.Prompt.from_pretrained("THIS FOLDER")\n'
        f"images = prompt.sample(jax.random.key(0), 16{_example_cond(prompt)})\n```",
        "## Generator",
        f"`{generator.name}`, sha256 `{generator.checksum or 'not known'}`. Licence: {terms}. Its weights are not "
        "in this folder.",
    ]
    if prompt.conditions is not None:
        lines += ["## Condition", _ranges(prompt.conditions)]
    for each in stack:
        if len(stack) > 1:
            lines.append(f"## Flow `{each.name}`")
        lines += [f"{'###' if len(stack) > 1 else '##'} {title}\n\n{text}" for title, text in each.notes]
    lines += ["## Limits", LIMITS]
    return "\n\n".join(lines) + "\n"


def training_note(ebm, settings: dict, flow: dict) -> tuple[str, str]:
    """Title and text on how a prompt was trained, from its target and the options that were set."""
    lines = ["| control | kind | options | weight | network, licence |", "| --- | --- | --- | --- | --- |"]
    for control in ebm.controls:
        network = getattr(control, "network", None)
        source = f"{network.name}, {getattr(network, 'license', '') or 'not stated'}" if network is not None else ""
        options, weight = _listed(options_of(control)), f"{float(control.weight):g}"
        lines.append(f"| {control.name} | {type(control).__name__} | {options} | {weight} | {source} |")
    return TRAINING, "\n".join([*lines, "", f"Settings: {_listed({**settings, **flow})}."])


def options_of(control) -> dict:
    """The fields of a control that are numbers or text, by name, but for its name and weight."""
    told = ("name", "weight", "needs_reference")
    return {
        name: value
        for name, value in vars(control).items()
        if name not in told and isinstance(value, (str, int, float)) and value != ""
    }


def _listed(options: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)


def _ranges(conditions) -> str:
    low, high = (np.degrees(np.asarray(end)).round(4) for end in (conditions.low, conditions.high))
    names = conditions.names or [f"angle {index}" for index in range(len(low))]
    ranges = ", ".join(f"{name} {a:g} to {b:g}" for name, a, b in zip(names, low, high, strict=True))
    return f"`cond` holds angles in radians. In degrees, the flow was trained on: {ranges}."


def _example_cond(prompt) -> str:
    dim = prompt.flow.cond_dim
    return f", cond=[{', '.join(dim * ['0.0'])}]" if dim else ""
