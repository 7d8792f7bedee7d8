"""Pictures of a report: the same noise side by side and large where single pictures are there, else as a sheet."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path

from PIL import Image

from promptgen_jax.runs.report.markup import Html, element
from promptgen_jax.store import disk

MAX_WIDTH = 1280  # of an embedded picture; larger ones are reduced
MAX_BYTES, USUAL_PIXELS, PIXELS_PER_BYTE = 2**28, 4 * 10**7, 8  # of a picture; photographs take a byte a pixel or more
TINY = 480  # to about this width small pictures are enlarged, by whole factors and with hard pixels
SHOWN = 6  # rows of noise that stand open; the others are a click away
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def images(folder: Path, items: list[dict] | None) -> Html | None:
    """Pictures embedded as PNG, see `documents.Picture`; a file that cannot be shown is named instead."""
    shown = [item for item in items or [] if Path(str(item.get("file"))).suffix != ".npz"]
    if not shown:
        return None
    return element("div", [_side_by_side(folder, item) or _sheet(folder, item) for item in shown], class_="pictures")


def _side_by_side(folder: Path, item: dict) -> Html | None:
    """One block of pictures for each noise, or None without a readable file of them."""
    about = item.get("faces")
    if not about:
        return None
    labels, rows = about["labels"], about["rows"]
    try:
        tiles = _tiles(disk.inside(folder, about["file"]), rows, len(labels))
    except (*UNREADABLE, disk.OutsideError):
        return None
    show = _pair if len(labels) == 2 else _block
    blocks = [show(f"noise {row + 1}", labels, tiles[row], about.get("columns")) for row in range(rows)]
    style = "pairs" if len(labels) == 2 else "blocks"
    hint = "Point at a picture on the right, or tap it, to see the one before in its place." if style == "pairs" else ""
    return element(
        "div",
        element("p", " ".join(filter(None, (item.get("caption"), hint)))),
        element("div", blocks[:SHOWN], class_=style),
        _more(blocks[SHOWN:], style),
    )


def _more(blocks: list[Html], style: str) -> Html | None:
    if not blocks:
        return None
    return element("details", element("summary", f"{len(blocks)} more"), element("div", blocks, class_=style))


def _pair(what: str, labels: list[str], tiles: list[bytes], columns: int | None) -> Html:
    """Before and after; the latter can be pointed at."""
    before, after = (
        element(
            "figure",
            element("img", src=_embedded(tile), alt=f"{what}, {label}"),
            element("figcaption", label),
            class_=style,
            tabindex=None if style == "before" else 0,
        )
        for style, label, tile in zip(("before", "after"), labels, tiles, strict=True)
    )
    return element("div", before, after, class_="pair")


def _block(what: str, labels: list[str], tiles: list[bytes], columns: int | None) -> Html:
    """One noise under all conditions, in rows of `columns`."""
    pictures = [
        element("img", src=_embedded(tile), alt=f"{what}, {label}", title=label)
        for label, tile in zip(labels, tiles, strict=True)
    ]
    return element("div", pictures, class_="block", style=f"--columns:{columns or len(labels)}")


def _tiles(path: Path, rows: int, columns: int) -> list[list[bytes]]:
    """The single pictures, PNG, of a file that holds them edge to edge.

    Raises:
      ValueError: the file does not hold that many; as `_opened`.
    """
    picture, _ = _opened(path)
    width, height = picture.width // columns, picture.height // rows
    if not width or not height or (width * columns, height * rows) != picture.size:
        raise ValueError(f"{path}: {picture.size} pixels do not hold {rows} x {columns} pictures")
    return [
        [
            _png(picture.crop((column * width, row * height, (column + 1) * width, (row + 1) * height)))
            for column in range(columns)
        ]
        for row in range(rows)
    ]


def _sheet(folder: Path, item: dict) -> Html:
    name, caption = Path(item["file"]).name, item.get("caption")
    try:
        content, width, height, note = _embeddable(disk.inside(folder, item["file"]))
    except (FileNotFoundError, disk.OutsideError):
        return element("p", f"{name}: this picture is not in the run's folder.", class_="missing")
    except UNREADABLE:
        return element("p", f"{name}: this file is not a picture that can be shown.", class_="missing")
    scale = max(1, TINY // width)
    picture = element(
        "img",
        src=_embedded(content),
        alt=caption or name,
        width=width * scale,
        height=height * scale,
        class_="tiny" if scale > 1 else None,
    )
    text = element("figcaption", caption, f" {note}" if note else None) if caption or note else None
    return element("figure", picture, text, style=f"width:{width * scale}px")


def _embeddable(path: Path) -> tuple[bytes, int, int, str]:
    """PNG bytes of a picture, its width and height, and a remark if it had to be reduced."""
    picture, content = _opened(path)
    width, height = picture.size
    if picture.format == "PNG" and width <= MAX_WIDTH:
        return content, width, height, ""
    small, note = picture.convert("RGB"), ""
    if width > MAX_WIDTH:
        small = small.resize((MAX_WIDTH, max(1, round(height * MAX_WIDTH / width))), Image.Resampling.LANCZOS)
        note = f"(Reduced; the file {path.name} has {width} × {height} pixels.)"
    return _png(small), *small.size, note


def _opened(path: Path) -> tuple[Image.Image, bytes]:
    """A picture, read whole, and the bytes of its file.

    Raises:
      One of `UNREADABLE`: no picture, or a small file of so many pixels that it would fill the memory.
    """
    content = disk.read_bytes(path, MAX_BYTES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a large grid of our own
        picture = Image.open(io.BytesIO(content))
        if picture.width * picture.height > max(USUAL_PIXELS, PIXELS_PER_BYTE * len(content)):
            raise ValueError("a small file of many pixels")
        picture.load()
    return picture, content


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _embedded(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()
