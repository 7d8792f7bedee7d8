"""The notebooks, executed from top to bottom in their smoke setting, in a folder of their own."""

import html
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
USED = ("promptgen_jax", "configs", "convert")  # what a notebook needs of the repository, beside weights
INSTALLS = re.compile(r"^\s*[%!].*?\bpip3?\s+install\b(.*)$", re.MULTILINE)
MAX_BYTES = 700_000


def read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where all notebooks keep what they compile."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def execute(tmp_path, cache, monkeypatch):
    """Executes a notebook as if the temporary folder were the repository; returns it with its outputs."""
    settings = {
        "PROMPTGEN_SMOKE": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # a few steps do not repay a long compilation
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for folder in ("notebooks", "ported_weights"):
        (tmp_path / folder).mkdir()
    for name in (*USED, *(f"ported_weights/{path.name}" for path in (ROOT / "ported_weights").iterdir())):
        (tmp_path / name).symlink_to(ROOT / name)

    def run(notebook):
        resources = {"metadata": {"path": str(tmp_path / "notebooks")}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
        return notebook

    return run


@pytest.mark.full
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, execute):
    """A cell that fails raises; pictures are shown."""
    notebook = execute(read(path))
    assert [output for output in outputs(notebook) if "image/jpeg" in output.get("data", {})]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_text_control_takes_own_files(tmp_path, execute):
    """A StyleGAN2 and a CLIP as their authors publish them, but small."""
    pytest.importorskip("torch", reason="torch, which writes and runs the official networks, is not installed")
    import official_clip
    import official_stylegan2

    state = official_stylegan2.official_state("stylegan2_256", small=True)
    files = {
        "GENERATOR_FILE": official_stylegan2.write_rosinality(tmp_path / "ffhq.pt", state),
        "CLIP_FILE": official_clip.write_archive(tmp_path / "ViT-B-32.pt", official_clip.small_state()),
    }
    notebook = read(ROOT / "notebooks" / "text_control.ipynb")
    for cell in notebook.cells:
        for name, file in files.items():
            cell.source = cell.source.replace(f'{name} = ""', f'{name} = "{file}"')
        cell.source = cell.source.replace('TEXT = "a photo of a smiling woman"', 'TEXT = "a face"')
    printed = "".join(output.get("text", "") for output in outputs(execute(notebook)))
    assert "your own StyleGAN2 and CLIP" in printed
    assert "my_stylegan2: 8 random numbers to 16 x 16 pixels" in printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_fit_for_colab(path):
    """No cell installs jax, whose accelerator packages would not fit any more; outputs are small and of no machine.

    A badge opens it there, and little has to be read before it begins.
    """
    notebook = read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    installed = [word for source in code(notebook) for line in INSTALLS.findall(source) for word in line.split()]
    assert "git+{REPOSITORY}" in installed
    assert not [word for word in installed if re.match(r"[\"']?(jax|jaxlib|libtpu)\b", word) or word == "-r"]
    assert max(len(source.splitlines()) for source in code(notebook)[:2]) <= 12
    assert f"/notebooks/{path.name})" in notebook.cells[0].source.splitlines()[2]
    assert path.stat().st_size < MAX_BYTES
    shown = str(outputs(notebook))
    assert not [folder for folder in (str(ROOT), f"{Path.home()}/") if folder in shown]


def test_report_is_stored_inline():
    """The page shows what the run printed, with pictures, and asks for nothing outside itself."""
    found = outputs(read(ROOT / "notebooks" / "quickstart.ipynb"))
    printed = "".join(output.get("text", "") for output in found)
    frame = next(output.data["text/html"] for output in found if "text/html" in output.get("data", {}))
    page = html.unescape(re.search('<iframe srcdoc="([^"]*)"', frame)[1])
    results = re.findall(r"(\S+) -> (\S+) (?:%|degrees)", printed)
    assert len(results) == 5
    shown = re.findall(r'<span class="was">([\d.]+)</span> → <strong>([\d.]+)</strong>', page)
    assert {tuple(map(float, each)) for each in results} <= {tuple(map(float, each)) for each in shown}
    assert page.count('<img src="data:image/jpeg;base64,') >= 2
    assert "://" not in re.sub("<svg.*?</svg>|<details>.*?</details>", "", page, flags=re.DOTALL)


def test_asks_for_the_address_where_there_is_no_clone(tmp_path):
    """As in Colab, where a notebook is opened without its repository."""
    notebook = read(NOTEBOOKS[0])
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"][:1]
    resources = {"metadata": {"path": str(tmp_path)}}
    with pytest.raises(CellExecutionError, match="Write the address of the repository"):
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()


def test_begin_alike_and_are_listed():
    """One way to install and to look at the machine in all of them; the README names them all."""
    assert len({tuple(code(read(path))[:2]) for path in NOTEBOOKS}) == 1
    listed = re.findall(r"notebooks/(\w+)\.ipynb", (ROOT / "README.md").read_text())
    assert sorted(set(listed)) == [path.stem for path in NOTEBOOKS]
