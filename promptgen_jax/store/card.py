"""The card of a saved prompt: a README.md that says what it does, how it was made and how well it works.

Its front matter is what the Hugging Face Hub reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from promptgen_jax.types import said

TRAINING = "Training"
LIMITS = (
    "The prompt repeats the errors of the models that controlled it: what was reached is what they see, not what is "
    "there. It holds the flow alone; the generator keeps its own licence and has to be there, and its limits remain."
)


def card(prompt) -> str:
    """The text of README.md, Markdown with YAML front matter, of a `Prompt` with the flows below it."""
    stack, generator = prompt.stack()
    terms = said(generator, "license") or "not stated"
    front = {
        "library_name": "promptgen_jax",
        "license": "other",
        "license_name": re.sub("[^a-z0-9.-]+", "-", f"{generator.name}-terms".lower()),  # the Hub wants an id
        "tags": ["promptgen", "generative-visual-prompt", "jax", "flax"],
    }
    matter = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in front.items()]
    lines = [
        "\n".join(["---", *matter, "---"]),
        f"# {escape(prompt.name)}",
        f"An invertible flow on the latents of the generator {code(generator.name)}, made with promptgen_jax. Flow and "
        "generator together sample from a controlled distribution, without any control model:",
        "```python\nimport jax\nimport promptgen_jax as pg\n\n"
        'prompt = pg.Prompt.from_pretrained("THIS FOLDER")\n'
        f"images = prompt.sample(jax.random.key(0), 16{_example_cond(prompt)})\n```",
        "## Generator",
        f"{code(generator.name)}, sha256 {code(generator.checksum or 'not known')}. Licence: {escape(terms)}. "
        "Its weights are not in this folder.",
    ]
    if prompt.conditions is not None:
        lines += ["## Condition", _ranges(prompt.conditions)]
    for each in stack:
        if len(stack) > 1:
            lines.append(f"## Flow {code(each.name)}")
        notes = (*([training_note(**each.recipe)] if each.recipe else ()), *each.notes)
        lines += [f"{'###' if len(stack) > 1 else '##'} {escape(title)}\n\n{_tame(text)}" for title, text in notes]
    lines += ["## Limits", LIMITS]
    return "\n\n".join(lines) + "\n"


def training_note(controls: Sequence[Mapping], objective: Mapping, training: Mapping) -> tuple[str, str]:
    """Title and text on how a prompt was trained, of its recipe.

    Args:
      controls: of each its `name`, `kind`, `weight`, what was asked for as `options`, and `networks` with licences.
      objective: `kind` and `options`.
      training: options of training and flow.
    """
    lines = ["| control | kind | asked for | weight | network, licence |", "| --- | --- | --- | --- | --- |"]
    for control in controls:
        options = {name: value for name, value in control["options"].items() if name not in ("name", "weight")}
        row = (control["name"], control["kind"], _listed(options), f"{control['weight']:g}", control["networks"])
        lines.append(f"| {' | '.join(map(escape, row))} |")
    settings = {"objective": objective["kind"], **objective["options"], **training}
    return TRAINING, "\n".join([*lines, "", f"Settings: {escape(_listed(settings))}."])


def escape(text) -> str:
    """Text of others on one line of Markdown, with no live table cell, link, tag, code or emphasis in it."""
    line = re.sub(r"([\\`*\[\]<|])", r"\\\1", " ".join(str(text).split()))
    return line.replace("://", ":\\//").replace("www.", "www\\.")


def code(text) -> str:
    """Text of others as code within a line."""
    return f"`{' '.join(str(text).replace('`', chr(39)).split())}`"


def _tame(text: str) -> str:
    """Markdown of a note, which a file may have brought, without tags and links: what is escaped stays so."""
    text = re.sub(r"(\\[\s\S])|([<\[])", lambda found: found[1] or f"\\{found[2]}", text)
    return text.replace("://", ":\\//").replace("www.", "www\\.")


def _listed(options: Mapping) -> str:
    told = {name: value for name, value in options.items() if isinstance(value, (bool, int, float)) or value}
    return ", ".join(f"{name} {_said(value)}" for name, value in told.items())


def _said(value) -> str:
    """A value of an option in words."""
    if isinstance(value, Mapping):
        return _listed(value)
    return f"({', '.join(map(_said, value))})" if isinstance(value, (list, tuple)) else str(value)


def _ranges(conditions) -> str:
    told = conditions.told()
    rows = [
        f"| {escape(name)} | {unit or 'none'} | {escape(told[name])} |"
        for (name, _), unit in zip(conditions.components, conditions.units_inside, strict=True)
    ]
    table = [
        "`cond` holds, in this order:\n",
        "| condition | unit in `cond` | trained on |",
        "| --- | --- | --- |",
        *rows,
    ]
    if conditions.of_kind("strength"):
        table.append("\nA strength is a dial: at 0 its control is off. `strength={name: number}` may stand for `cond`.")
    if conditions.of_kind("share"):
        table.append(
            "\nA share is the wanted mean probability of a label. `shares={name: number}` may stand for `cond`."
        )
    if conditions.texts:
        named = ", ".join(escape(f"“{text}”") for text in conditions.texts)
        table.append(
            f"\nThe condition is the embedding of a sentence by the text tower of {code(conditions.network)}. "
            f"`text='...'` may stand for `cond`; new sentences need no training. Trained on: {named}."
        )
    return "\n".join(table)


def _example_cond(prompt) -> str:
    dim, conditions = prompt.flow.cond_dim, prompt.conditions
    kinds = {kind for _, kind in conditions.components} if conditions is not None else set()
    if kinds == {"strength"}:
        return f", strength={json.dumps(dict.fromkeys(conditions.of_kind('strength'), 0.5), ensure_ascii=False)}"
    if prompt.conditions is not None and prompt.conditions.texts:
        return f", text={json.dumps(prompt.conditions.texts[0], ensure_ascii=False)}"
    if kinds == {"share"}:
        highest = {name: high for name, (_, high, _) in conditions.ranges().items()}
        return f", shares={json.dumps(highest, ensure_ascii=False)}"
    return f", cond=[{', '.join(dim * ['0.0'])}]" if dim else ""
