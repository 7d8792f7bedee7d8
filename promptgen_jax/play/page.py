"""The page: dials on one side, the same noise before and after on the other. Gradio, the extra `play`, serves it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import random
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

try:
    import gradio as gr
except ImportError:
    raise ImportError("play needs Gradio, which is not installed: pip install 'promptgen_jax[play]'.") from None
if int(gr.__version__.partition(".")[0]) < 6:
    raise ImportError(f"play needs Gradio 6, and {gr.__version__} is installed: pip install -U 'gradio>=6'.")

from promptgen_jax import checks
from promptgen_jax.play.studio import MAX_NUMBER, MAX_PIXELS, MAX_SEED, MAX_TEXT, Dial, Drawn, Settings, Studio
from promptgen_jax.runs.report.markup import Html, element
from promptgen_jax.store import disk
from promptgen_jax.store.images import before_after_sheet, png_bytes

LOOPBACK, PORT = "127.0.0.1", 7860
MAX_FILE = "10mb"
WAITING = 64  # requests in the queue; more are turned away
KEPT = 3600  # seconds that files of a closed page are kept
PHOTOGRAPHIC = 256  # pixels a side from which pictures travel as JPEG
MOVE, SAY = " Move a dial; the noise stays.", " Say it in other words; the noise stays."
STYLE = """
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1rem 1.6rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .3rem; }
figure { margin: 0; }
img { display: block; width: 100%; border-radius: 6px; }
figcaption { text-align: center; font-size: .85rem; opacity: .7; }
"""
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # none that has to be fetched


def build(studio: Studio) -> Any:
    """The page of a studio, a `gradio.Blocks`; see `serve` for how it is launched.

    Every visitor has settings, a face and files of their own.
    """
    folder = tempfile.TemporaryDirectory(prefix="promptgen_play_")
    title = " and ".join(dict.fromkeys(prompt.name for prompt in studio.prompts))
    with gr.Blocks(title=f"{title} · promptgen_jax", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        page.files = folder  # lives, and is deleted, with the page
        face = gr.State(None)
        gr.Markdown(
            f"# {title}\nThe same noise before and after.{MOVE if studio.dials else SAY if studio.texts else ''}"
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                controls, fresh = _controls(studio)
                picture, find, forget, found = _own_face()
            with gr.Column(scale=3, min_width=320):
                shown = gr.HTML(css_template=STYLE, elem_id="pairs")
                with gr.Row():
                    png = gr.DownloadButton("Pictures (PNG)", elem_id="png")
                    npz = gr.DownloadButton("Latents (NPZ)", elem_id="npz")
                code = gr.Code(label="The same without this page", language="shell", elem_id="command", lines=1)

        def draw(request: gr.Request, *chosen):
            with _told():
                face, seed, number, truncation, weight, *rest = chosen
                numbers, count = (_whole(seed), _whole(number), truncation, weight), len(studio.texts)
                settings = Settings(*numbers, texts=tuple(rest[:count]), dials=tuple(rest[count:]), face=face)
                drawn = studio.draw(settings)
                if words := studio.unknown(settings):
                    gr.Warning(f"Never seen in training, so they mean nothing here: {', '.join(words)}.")
                files = write(_own_folder(folder.name, request), drawn)
                return [pairs(drawn, face is not None), *files, studio.command(settings)]

        def look(path):
            with _told():
                if path is None:
                    raise ValueError("Choose a picture first.")
                z, residual = studio.find(read(path))
                return z, f"Found, {residual:.3f} away in pixels on average. It stands first."

        def leave(request: gr.Request):
            shutil.rmtree(_own_folder(folder.name, request), ignore_errors=True)

        outputs = dict(inputs=[face, *controls], outputs=[shown, png, npz, code])
        quick = dict(outputs, fn=draw, show_progress="hidden", trigger_mode="always_last", concurrency_id="draw")
        seed, *dials = controls
        told = [each.submit for each in dials if isinstance(each, gr.Textbox)]  # once it is complete
        turned = [each.change for each in dials if not isinstance(each, gr.Textbox)]
        moved = [page.load, seed.input, *told, *turned]  # a closed part of the page tells no change
        gr.on(moved, api_name="draw", concurrency_limit=2, **quick)
        fresh.click(lambda: random.randrange(MAX_SEED), outputs=seed, api_visibility="private").success(
            api_visibility="private", **quick
        )
        find.click(look, [picture], [face, found], concurrency_limit=1, api_visibility="private").success(
            api_visibility="private", **quick
        )
        forget.click(lambda: (None, None, ""), outputs=[face, picture, found], api_visibility="private").success(
            api_visibility="private", **quick
        )
        page.unload(leave)
    return page.queue(max_size=WAITING)


def serve(studio: Studio, *, host: str | None = LOOPBACK, port: int | None = PORT) -> None:
    """Serves the page until the process is interrupted.

    Args:
      studio: what it shows.
      host: address it listens on; None is what `GRADIO_SERVER_NAME` says, as in a Space.
      port: None takes the next free one.

    Raises:
      ValueError: no port; OSError: one that is taken, or an address of another machine.
    """
    if port is not None:
        checks.check_number("play: port", port, 0, 2**16 - 1)
    page = build(studio)
    try:
        _, address, _ = launch(page, host=host, port=port, prevent_thread_lock=True)
    except OSError as error:
        if "empty port" not in str(error):
            raise
        raise OSError(
            f"play: cannot listen on {host}, port {port}: it is taken, or no address of this machine. Give another "
            "--port, 0 for the next free one, or another --host."
        ) from None
    print(f"play: {address}  (Ctrl-C ends it)", flush=True)
    page.block_thread()


def launch(page: Any, *, host: str | None = LOOPBACK, port: int | None = None, **options: Any) -> tuple:
    """What `page.launch` of Gradio returns, with our limits; `options` go to it. In a notebook it shows the page."""
    theme = gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "Menlo", "monospace"])
    ours = dict(share=False, max_file_size=MAX_FILE, footer_links=[], theme=theme, ssr_mode=False, quiet=True)
    return page.launch(server_name=host, server_port=port, **ours, **options)


def _controls(studio: Studio) -> tuple[list, Any]:
    """Seed, number, truncation, blend, sentences and dials; and the button for new noise."""
    first, names = Settings(), [prompt.name for prompt in studio.prompts]
    with gr.Group():
        texts = [
            gr.Textbox(text, label="sentence", info="Enter shows it", max_length=MAX_TEXT, elem_id=f"text_{index}")
            for index, text in enumerate(studio.texts)
        ]
        dials = [
            gr.Slider(dial.low, dial.high, dial.start, label=_label(dial), elem_id=f"dial_{index}")
            for index, dial in enumerate(studio.dials)
        ]
        weight = gr.Slider(
            0, 1, 0, step=0.01, label=f"blend: 0 {names[0]}, 1 {names[-1]}", visible=len(names) == 2, elem_id="blend"
        )
        fresh = gr.Button("New faces", variant="primary", elem_id="fresh")
    with gr.Accordion("Noise", open=False, elem_id="noise"):
        truncation = gr.Slider(
            0.05, 1, first.truncation, step=0.05, label="truncation", info="lower: more typical", elem_id="truncation"
        )
        number = gr.Slider(1, MAX_NUMBER, first.number, step=1, label="number", elem_id="number")
        seed = gr.Number(first.seed, label="seed", precision=0, minimum=0, maximum=MAX_SEED, elem_id="seed")
    return [seed, number, truncation, weight, *texts, *dials], fresh


def _label(dial: Dial) -> str:
    return f"{dial.name} ({dial.unit})" if dial.unit else dial.name


def _own_face() -> tuple:
    with gr.Accordion("A face of your own", open=False, elem_id="own"):
        gr.Markdown("A picture framed as those here. The generator shows the nearest face that it can make.")
        picture = gr.Image(type="filepath", image_mode=None, sources=["upload", "clipboard"], show_label=False)
        with gr.Row():
            find, forget = gr.Button("Find it", elem_id="find"), gr.Button("Forget it", elem_id="forget")
        found = gr.Markdown(elem_id="found")
    return picture, find, forget, found


def pairs(drawn: Drawn, own: bool = False) -> Html:
    """The pictures as HTML, each noise before and after side by side."""
    return element(
        "div",
        [
            element(
                "div",
                _figure(before, "your face" if own and not index else "before", f"noise {index + 1}, before"),
                _figure(after, "after", f"noise {index + 1}, after"),
                class_="pair",
            )
            for index, (before, after) in enumerate(zip(drawn.before, drawn.after, strict=True))
        ],
        class_="pairs",
    )


def _figure(picture: np.ndarray, caption: str, alt: str) -> Html:
    file, form = io.BytesIO(), "PNG" if picture.shape[0] <= PHOTOGRAPHIC else "JPEG"
    Image.fromarray(picture).save(file, form, **({"quality": 90} if form == "JPEG" else {}))
    content = base64.b64encode(file.getvalue()).decode()
    image = element("img", src=f"data:image/{form.lower()};base64,{content}", alt=alt)
    return element("figure", image, element("figcaption", caption))


def write(folder: Path, drawn: Drawn) -> tuple[str, str]:
    """Writes a sheet of the pictures and their latents; returns the two paths."""
    rows = [(name, each.astype(np.float32) / 255) for name, each in (("before", drawn.before), ("after", drawn.after))]
    conds = {f"cond_{index}": cond for index, cond in enumerate(drawn.conds) if cond is not None}
    disk.write_bytes(folder / "pictures.png", png_bytes(before_after_sheet(rows, columns=min(8, len(drawn.before)))))
    disk.write_npz(folder / "latents.npz", number=drawn.number, eps=drawn.eps, z=drawn.z, **conds)
    return str(folder / "pictures.png"), str(folder / "latents.npz")


def read(path: str | Path) -> np.ndarray:
    """A picture that was brought, uint8 (height, width, 3), upright.

    Raises:
      ValueError: no picture, or one of too many pixels, which is not unpacked.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise ValueError(f"The picture has more than {MAX_PIXELS:,} pixels. Make it smaller.")
                return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError):
        raise ValueError("That is not a picture that can be read. Choose a PNG or JPEG file.") from None


def _own_folder(root: str, request: Any) -> Path:
    """The folder of a visitor; what a browser says of its session is no name of a folder."""
    folder = Path(root, hashlib.sha256(str(request.session_hash).encode()).hexdigest()[:32])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Within it a sentence of ours is shown to the visitor."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:  # also where the visitor's folder went with the page
        raise gr.Error(str(error), print_exception=False) from None
