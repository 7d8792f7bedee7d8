"""A folder that a Hugging Face Space takes: the prompt, a program of a few lines, and what it needs."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

from promptgen_jax import __version__
from promptgen_jax.play.studio import Studio
from promptgen_jax.store import disk
from promptgen_jax.types import said

APP = '''"""A page to play with; `python app.py` serves it here, and a Space serves it by itself."""

from promptgen_jax.play import page
from promptgen_jax.play.studio import Studio

if __name__ == "__main__":
    page.serve(Studio.load({names!r}{options}), host=None, port=None)
'''
README = """---
title: {title}
sdk: gradio
sdk_version: {gradio}
app_file: app.py
---

Made by promptgen_jax {version}. The generator is `{generator}`, under these terms: {license}.
"""


def write(studio: Studio, folder: str | Path, *, repository: str = "") -> Path:
    """Writes `app.py`, `requirements.txt`, `README.md` and the prompts.

    Args:
      studio: what the Space shows.
      folder: a new one, or an empty one.
      repository: address of this library, such as https://github.com/NAME/promptgen_jax, for the requirements.

    Raises:
      ValueError: the folder holds something; PermissionError: it cannot be written.
    """
    folder = disk.open_folder("play: folder", disk.local_path("play: folder", folder))
    if any(folder.iterdir()):
        raise ValueError(f"play: folder {folder} holds something already. Choose a new one.")
    names = [f"prompt_{index}" for index in range(len(studio.prompts))]
    for name, prompt in zip(names, studio.prompts, strict=True):
        prompt.save(folder / name)
    generator = studio.generator
    library = f"promptgen_jax[play] @ git+{repository}" if repository else f"promptgen_jax[play]=={__version__}"
    pinned = [f"{name}=={importlib.metadata.version(name)}" for name in ("tfp-nightly", "jax")]
    texts = {
        "app.py": APP.format(
            names=names, options="".join(f", {name}={value!r}" for name, value in studio.options.items())
        ),
        "requirements.txt": "\n".join([library, *pinned, ""]),
        "README.md": README.format(
            title=json.dumps(" and ".join(prompt.name for prompt in studio.prompts)),
            gradio=importlib.metadata.version("gradio"),
            version=__version__,
            generator=generator.name,
            license=said(generator, "license") or "not stated",
        ),
    }
    for name, text in texts.items():
        disk.write_bytes(folder / name, text.encode())
    return folder
