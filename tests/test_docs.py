"""The documentation: what it says to run is run, and what it names exists. The rules are in pages.py."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pages
import pytest
from pages import Block

import promptgen_jax as pg
from promptgen_jax import controls, parts
from promptgen_jax.store import catalogue

DOCS = pages.ROOT / "docs"
NAMES = [str(page.relative_to(pages.ROOT)) for page in pages.PAGES]
EXTENDING = "docs/extending.md"  # needs files of the reader's own, which test_extending and test_own_flow bring
RUNNABLE = [name for name in NAMES if name != EXTENDING and pages.runnable(pages.ROOT / name)]
BAD = {
    "config": (Block("sh", "", "python main.py --config=configs/nope.py --workdir=runs/x"), "no such file"),
    "experiment": (
        Block("sh", "", "python main.py --config=configs/stylegan2_text.py:babby --workdir=runs/x"),
        "Did you mean 'baby'",
    ),
    "key": (
        Block("sh", "", "python main.py --config=configs/quickstart.py --workdir=runs/x --config.sede=3"),
        "no key 'sede'",
    ),
    "flag": (Block("sh", "", "pip install x && python main.py --wrkdir=y --workdir=runs/x"), "wrkdir"),
    "mode": (Block("sh", "", "srun -n 2 .venv/bin/python main.py --mode=smaple \\\n  --workdir=runs/x"), "smaple"),
    "sent": (Block("sh", "", 'gcloud ssh x --command="cd x && python main.py --workdir=x --nope"'), "nope"),
    "console": (Block("console", "", "$ python main.py --nope --workdir=runs/x\nwhat it says"), "nope"),
    "nothing": (Block("console", "", "what it says"), "no command"),
    "converter": (Block("sh", "", "python convert/nope_to_flax.py a b  # a comment"), "nope_to_flax.py: no such file"),
    "converter flag": (
        Block("sh", "", "python convert/stylegan2_to_flax.py a b --fast"),
        "unrecognized arguments: --fast",
    ),
    "module": (Block("sh", "", "python -m promptgen_jax.nope x"), "promptgen_jax.nope: no such module"),
    "module flag": (Block("sh", "", "python -m promptgen_jax.report x --nope"), "--nope: unknown flag"),
    "requirements": (Block("sh", "", "pip install -r nope.txt"), "nope.txt: no such file"),
    "program": (Block("sh", "", "frobnicate --all"), "frobnicate: unknown program"),
    "attribute": (Block("python", "", "import promptgen_jax as pg\npg.Promt.load('x')"), "Promt"),
    "import": (Block("python", "", "from promptgen_jax.flow import lod_flow"), "lod_flow"),
    "message": (Block("text", "", "training: this is said by no program of ours"), "said by no program"),
    "language": (Block("bash", "", "python main.py"), "'bash'"),
}


@pytest.mark.parametrize("name", NAMES)
def test_everything_named_exists(name, monkeypatch, tmp_path):
    page = pages.ROOT / name
    monkeypatch.chdir(tmp_path)
    for block in pages.blocks(page):
        pages.check_block(block)
    pages.check_prose(page)
    assert page.read_text().count("```") == 2 * len(pages.blocks(page)), "a fenced block that the tests do not see"


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_exist_is_found(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    block, message = BAD[name]
    with pytest.raises(AssertionError, match=message):
        pages.check_block(block)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[x](nope.md)", "nope.md, which does not exist"),
        ("[x](README.md#nope)", "no heading #nope"),
        ("[`Nope`](promptgen_jax/flow.py)", "has no attribute 'Nope'"),
        ("`configs/nope.py:x`", "configs/nope.py` does not exist"),
        ("`pg.nope`", "has no attribute 'nope'"),
        ("| `--nope` | what it does |", "--nope: unknown flag"),
    ],
    ids=["link", "anchor", "name", "path", "attribute", "flag"],
)
def test_what_prose_names_is_found(text, message, tmp_path):
    (tmp_path / "page.md").write_text(text.replace("](", f"]({pages.ROOT}/"))
    with pytest.raises(AssertionError, match=message):
        pages.check_prose(tmp_path / "page.md")


@pytest.mark.full
@pytest.mark.parametrize("name", RUNNABLE)
def test_page_runs(name, tmp_path):
    """Every command and program on shipped weights, one after the other, in small."""
    for path in ("main.py", "configs", "ported_weights"):
        (tmp_path / path).symlink_to(pages.ROOT / path)
    pages.write_modules(pages.ROOT / name, tmp_path)
    blocks = pages.runnable(pages.ROOT / name)
    for words, _ in blocks:
        if words:
            pages.run_small(words, "", tmp_path)
    code = "\n".join(code for _, code in blocks)
    if code:
        pages.run_small([], code, tmp_path)


def test_readme_links_every_page():
    readme = (pages.ROOT / "README.md").read_text()
    assert all(f"]({name})" in readme for name in NAMES[1:])


def test_checkpoints():
    """The page has every fact of the catalogue, and no weights that nobody can have."""
    page = " ".join((DOCS / "checkpoints.md").read_text().split())
    for name, checkpoint in catalogue.CHECKPOINTS.items():
        for fact in (f"`{name}`", checkpoint.command(name), checkpoint.url, checkpoint.license, f"`{checkpoint.file}`"):
            assert fact in page, f"{name}: {fact}"
        if checkpoint.megabytes:
            assert re.search(rf"\| `{name}` \|[^|]*\| \d+ \| {checkpoint.megabytes} \|", page), name
    known = {*catalogue.CHECKPOINTS, *(path.name for path in (pages.ROOT / "ported_weights").iterdir())}
    named = re.findall(r"ported_weights/(\w+)", page) + re.findall(r"\| `(\w+)` \|", page)
    assert not set(named) - known


def test_generators():
    """The page has every adapter, and every generator of the catalogue with its terms."""
    page = " ".join((DOCS / "generators.md").read_text().split()).replace("Landscape: ", "")
    for name, checkpoint in catalogue.CHECKPOINTS.items():
        if checkpoint.kind in ("generator", "mesh"):
            assert f"`{name}`" in page
            assert checkpoint.license in page
    assert all(page.count(f"| `{name}` |") >= 2 for name in parts.available("generators") if name != "function")


def test_extending(tmp_path, monkeypatch):
    """Own functions, own network with weights and own file, as a reader would paste them one after the other."""
    torch = pytest.importorskip("torch", reason="torch, which writes and runs the official networks, is not installed")
    import official_own
    import official_transformers as official
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    pages.write_modules(DOCS / "extending.md", tmp_path)
    monkeypatch.setattr(controls, "__path__", [*controls.__path__, str(tmp_path)])
    names = {}
    ten_lines, hub, own_torch, network, own_file, *rest = [
        block for block in pages.blocks(DOCS / "extending.md") if block.language == "python"
    ]

    exec(ten_lines.content, names)
    np.testing.assert_allclose(np.mean(names["pictures"], axis=(0, 1, 2)), [0.9, 0.1, 0.1], atol=0.12)

    official.write(tmp_path / "my-mood", official.vit())
    official.write(tmp_path / "my-clip", official.clip())
    official.write_tokenizer(tmp_path / "my-clip", end=1)
    exec(hub.content, names)
    assert names["about"].attributes == {"my-mood": ("label",), "my-clip": ()}
    _, file = official_own.saved(tmp_path, official_own.ResNet, (2, 2, 2, 2), False)
    save_file(torch.load(file), tmp_path / "my_resnet18.safetensors")
    exec(own_torch.content, names)
    assert names["owl"].network.preprocess.resized(300, 400) == (256, 341)

    exec(network.content, names)
    key, generator = jax.random.key(2), names["generator"]
    jax.tree.map(np.testing.assert_array_equal, names["model"].weights, names["drawn"])
    assert len(jax.tree.leaves(generator)) > len(jax.tree.leaves(generator.prior))  # weights are leaves
    uncontrolled = generator(key, generator.prior.sample(key, 64))
    energies = [
        float(jnp.mean(names["control"](key, pg.Sample(images=images, z=jnp.zeros((64, 6))))))
        for images in (uncontrolled, names["prompt"].sample(key, 64))
    ]
    assert energies[1] < 0.5 * energies[0]
    np.testing.assert_array_equal(names["again"].sample(key, 4), names["prompt"].sample(key, 4))

    comparison, sampler, objective, loop, *_ = [block for block in rest if not block.title]
    exec(comparison.content, names)
    assert [list(row.values) for row in names["spread"]] == [["generator", "prompt", "once more"]]

    exec(sampler.content, names)
    assert names["walked"].z.shape == (32, 6)
    assert {row.name for row in names["both"].own["cost"].rows} == {"energies", "gradients", "seconds"}

    exec(objective.content, names)
    assert names["history"][-1]["running"] != 0
    exec(loop.content, names)
    assert np.isfinite(names["loss"])
    assert names["prompt"].sample(key, 2).shape == (2, 8, 8, 3)

    (tmp_path / Path(own_file.title).name).write_text(own_file.content)
    control = pg.load_control("bright", level=0.8, weight=500.0)
    energy = control(key, pg.Sample(images=jnp.full((2, 4, 4, 3), 0.3), z=jnp.zeros((2, 6))))
    np.testing.assert_allclose(energy, 0.25, rtol=1e-5)
    with pytest.raises(ValueError, match="'brigt'.*'bright'"):
        pg.load_control("brigt", level=0.8)
