"""How the pages are built: `python -m sphinx -W --keep-going docs site`."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = html_title = "promptgen_jax"
author = "The promptgen_jax authors"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = []
html_theme = "furo"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
copybutton_prompt_text = "$ "
linkcheck_ignore = [r"https://.*/NAME/.*"]  # for the reader to fill in

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say shapes, ranges and units
napoleon_custom_sections = ["Source"]

STANDS_FOR = {"index": "README.md", "changelog": "CHANGELOG.md"}
CONTENTS = """
```{toctree}
:hidden:

method
equal_shares
comparison
own_loop
objectives
generators
extending
dials
editing
play
export
checkpoints
scaling
performance
troubleshooting
reliability
api
changelog
```
"""
LINK = re.compile(r"\[([^\]\[]*)\]\(([^)\s]+)\)")


def as_on_the_site(text: str, folder: Path) -> str:
    """A page of the repository with its relative links as the site has them.

    Names in files of the library lead to the reference, pages and pictures below docs/ to themselves; the rest of the
    repository is not on the site, so its links become plain text.
    """

    def replace(found: re.Match) -> str:
        label, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        file, _, anchor = target.partition("#")
        path = (folder / file).resolve()
        if path == ROOT / "README.md":
            path = ROOT / "docs" / "index.md"
        if path.is_relative_to(ROOT / "docs"):
            return f"[{label}]({path.relative_to(ROOT / 'docs')}{'#' + anchor if anchor else ''})"
        name = label.strip("`")
        if path.suffix == ".py" and path.is_relative_to(ROOT / "promptgen_jax") and name.isidentifier():
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            return f"{{py:obj}}`{name} <{module}.{name}>`"
        return label

    return LINK.sub(replace, text)


def _page(app, name: str, source: list[str]) -> None:
    if name in STANDS_FOR:
        source[0] = as_on_the_site((ROOT / STANDS_FOR[name]).read_text(encoding="utf-8"), ROOT)
        source[0] += CONTENTS if name == "index" else ""
    elif (Path(app.srcdir) / f"{name}.md").is_file():
        source[0] = as_on_the_site(source[0], ROOT / "docs")


def setup(app) -> None:
    """Lets pages pass through `as_on_the_site`; called by Sphinx."""
    app.connect("source-read", _page)
