"""The house: imports point down only, the root is small, and nobody asks parts what they are made of."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "promptgen_jax"
# from the ground up; a module imports from its own layer and those below
LAYERS = (
    ("types", "checks", "parts", "devices", "ops", "store"),
    ("models", "flows"),
    ("generators", "controls"),
    ("ebm", "prompt", "draws"),
    ("objectives", "samplers", "metrics", "editing"),
    ("evaluation", "training"),
    ("runs", "tinyclip"),
    ("play",),
    ("commands", "__init__", "__main__", "flow", "report"),
)
FLOORS = {name: floor for floor, names in enumerate(LAYERS) for name in names}
MAX_MODULES = 10  # of the root
OBJECTIVES = {path.stem for path in (PACKAGE / "objectives").glob("[!_]*.py")}
# who may ask: the folders of parts, the module of their contracts, and their finder
PARTS = ("generators", "controls", "flows", "objectives", "samplers", "metrics", "types", "parts")
NO_PARTS = ("processor", "config", "module", "arguments", "os", "libc", "found")
OTHERS = ("shape", "dtype", "ndim")  # of arrays, which are no parts; nor is what Python itself calls __so__
FILES = sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    """The first folder, or the name of a module in the root."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.Module) -> list[str]:
    """What a module imports of the package, by first name under it; also inside functions."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            whole = node.module == "promptgen_jax"
            found += [f"{node.module}.{alias.name}" for alias in node.names] if whole else [node.module]
    return [name.split(".")[1] for name in found if name.startswith("promptgen_jax.")]


def asks(tree: ast.Module) -> list[str]:
    """Questions after what a part may or may not have, or which class of control it is."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return [ast.unparse(call) for call in calls if _asks(call.func.id, len(call.args), *map(ast.unparse, call.args))]


def _asks(function: str, count: int, part: str = "", what: str = "", *_) -> bool:
    if function == "isinstance":
        return re.search(r"\w(Control|Objective)\b", what) is not None
    of_others = part in NO_PARTS or what.strip("'") in OTHERS or what.startswith("'__")
    return not of_others and (function == "hasattr" or (function == "getattr" and count == 3))


def objectives_named(tree: ast.Module) -> list[str]:
    """Comparisons with names of objectives."""
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Compare, ast.MatchValue))
        for each in ast.walk(node)
        if isinstance(each, ast.Constant) and each.value in OBJECTIVES
    ]


def of_every_file(find) -> dict[str, list]:
    found = {path.relative_to(PACKAGE).as_posix(): find(path, ast.parse(path.read_text())) for path in FILES}
    return {name: each for name, each in found.items() if each}


def test_every_module_has_a_layer():
    assert {layer_of(path) for path in FILES} <= FLOORS.keys()


def test_imports_point_down_only():
    def upwards(path, tree):
        floor = FLOORS[layer_of(path)]
        return sorted({name for name in imports(tree) if FLOORS.get(name, 0) > floor})

    assert not of_every_file(upwards)


def test_the_root_is_small():
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_MODULES


def test_nobody_asks_a_part_what_it_has():
    assert not of_every_file(lambda path, tree: [] if layer_of(path) in PARTS else asks(tree))


def test_nobody_compares_names_of_objectives():
    assert OBJECTIVES >= {"reverse_kl", "forward_kl", "score_function"}
    assert not of_every_file(lambda path, tree: [] if layer_of(path) == "objectives" else objectives_named(tree))


@pytest.mark.parametrize(
    ("find", "code", "found"),
    [
        (imports, "def f():\n    from promptgen_jax.runs import sampling", "runs"),
        (imports, "import promptgen_jax.runs.run as runs", "runs"),
        (imports, "from promptgen_jax import runs", "runs"),
        (asks, "if hasattr(control, 'beta'): pass", "hasattr(control, 'beta')"),
        (asks, "x = getattr(control, name, None)", "getattr(control, name, None)"),
        (asks, "x = isinstance(control, (int, MomentControl))", "isinstance(control, (int, MomentControl))"),
        (objectives_named, "if config.objective == 'reverse_kl': pass", "config.objective == 'reverse_kl'"),
        (objectives_named, "x = name in ('forward_kl',)", "name in ('forward_kl',)"),
    ],
)
def test_what_is_not_allowed_is_found(find, code, found):
    assert find(ast.parse(code)) == [found]
