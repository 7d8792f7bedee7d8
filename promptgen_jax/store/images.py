"""Pictures for people: float batches become 8-bit grids, labelled sheets and PNG files.

Batches are float (B, H, W, 3) in [0, 1] nominal range; a picture is uint8 (height, width, 3). Clamping
happens here and nowhere else.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from promptgen_jax import checks
from promptgen_jax.store import disk

LIGHT = np.array([0.3, 0.4, 0.866])  # towards it, seen from a mesh
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"\x00\x00\x00\x00IEND\xaeB`\x82"
PAPER, INK = 255, (25, 25, 30)  # background of grids and sheets; colour of labels


def to_uint8(images) -> np.ndarray:
    """Clamps to [0, 1] and rounds to 8 bits: `round(255 · clip(x, 0, 1))`.

    Args:
      images: (B, H, W, 3) floats.

    Returns:
      (B, H, W, 3) uint8.

    Raises:
      ValueError, TypeError: wrong shape or dtype, NaN, or values that look like 0 to 255.
    """
    checks.check_images("to_uint8", images)
    return np.rint(255 * np.clip(np.asarray(images, np.float32), 0, 1)).astype(np.uint8)


def load_image(path: str | Path) -> np.ndarray:
    """A picture file as float32 (height, width, 3) in [0, 1], turned upright.

    Raises:
      FileNotFoundError: no such file; ValueError: not a picture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such picture. Give the path of an image file.")
    try:
        with Image.open(path) as picture:
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"), np.float32) / 255
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise ValueError(f"{path}: not a picture that can be read. Give a PNG or JPEG file.") from None


def is_whole_png(path: str | Path) -> bool:
    """Whether there is a PNG file from its first to its last chunk; one that was cut off has no last one."""
    if not Path(path).is_file():  # but a pipe, whose opening would never end
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(len(PNG_START))
            file.seek(-len(PNG_END), io.SEEK_END)
            return start == PNG_START and file.read() == PNG_END
    except OSError:
        return False


def image_grid(images, *, columns: int | None = None, scale: int = 1, padding: int = 2) -> np.ndarray:
    """Lays a batch out in rows, first image top left; cells left over are white.

    Args:
      images: (B, H, W, 3) floats in [0, 1], B at least 1.
      columns: images per row; default the smallest square that holds all.
      scale: each pixel becomes a block of scale x scale.
      padding: white pixels between and around the images.

    Returns:
      Picture, uint8 (rows · (H · scale + padding) + padding, columns · (W · scale + padding) + padding, 3).

    Raises:
      ValueError, TypeError: a bad batch, or an option out of range.
    """
    tiles = to_uint8(images)
    if not len(tiles):
        raise ValueError("image_grid: got an empty batch; expected at least one image. Sample some first.")
    columns = math.ceil(math.sqrt(len(tiles))) if columns is None else columns
    checks.check_count("image_grid: columns", columns)
    checks.check_count("image_grid: scale", scale)
    checks.check_count("image_grid: padding", padding, minimum=0)
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    rows = -(-len(tiles) // columns)
    height, width = tiles.shape[1] + padding, tiles.shape[2] + padding
    grid = np.full((rows * height + padding, columns * width + padding, 3), PAPER, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = (index // columns) * height + padding, (index % columns) * width + padding
        grid[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return grid


def before_after_sheet(
    rows: Sequence[tuple[str, np.ndarray]],
    *,
    columns: int | None = None,
    scale: int = 1,
    padding: int = 2,
    text_size: int = 14,
) -> np.ndarray:
    """Stacks labelled grids, e.g. the same noise before and after control; labels wrap to the width.

    Args:
      rows: (label, images) pairs; images (B, H, W, 3) floats in [0, 1]; sizes may differ between pairs.
      columns: images per row; default all images of the longest batch side by side.
      scale: as `image_grid`.
      padding: as `image_grid`.
      text_size: height of the label font in pixels.

    Returns:
      Picture, uint8, as wide as the widest grid.

    Raises:
      ValueError, TypeError: no rows, or what `image_grid` refuses.
    """
    rows = list(rows)
    if not rows:
        raise ValueError("before_after_sheet: got no rows; expected (label, images) pairs. Pass at least one pair.")
    columns = max(len(images) for _, images in rows) if columns is None else columns
    grids = [image_grid(images, columns=columns, scale=scale, padding=padding) for _, images in rows]
    width = max(grid.shape[1] for grid in grids)
    parts = []
    for (label, _), grid in zip(rows, grids, strict=True):
        blank = np.full((grid.shape[0], width - grid.shape[1], 3), PAPER, np.uint8)
        parts += [_text_band(str(label), width, text_size), np.concatenate([grid, blank], axis=1)]
    return np.concatenate(parts)


def render_mesh(vertices, triangles, *, size: int = 128, padding: float = 0.05) -> np.ndarray:
    """Shaded pictures of meshes from the front, orthographic, all at one scale; far triangles are painted first.

    Args:
      vertices: (B, V, 3), x to the right in the picture, y up, z towards the viewer.
      triangles: (F, 3) vertices, counter-clockwise as seen from outside.
      size: pixels a side.
      padding: share of the side that stays free around the largest mesh.

    Returns:
      (B, size, size, 3) float32 in [0, 1].
    """
    vertices, triangles = np.asarray(vertices, np.float64), np.asarray(triangles)
    middle = (vertices.min(axis=(0, 1)) + vertices.max(axis=(0, 1))) / 2
    extent = np.abs(vertices[..., :2] - middle[:2]).max() * (1 + 2 * padding)
    large = 2 * size  # drawn at twice the size, for smooth edges
    pictures = []
    for points in vertices:
        corners = points[triangles]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
        shade = np.clip(normals @ LIGHT, 0, 1)
        flat = ((corners[..., :2] - middle[:2]) * (1, -1) / extent + 1) / 2 * large
        picture = Image.new("L", (large, large), PAPER)
        draw = ImageDraw.Draw(picture)
        for index in np.argsort(corners[..., 2].mean(axis=1)):
            if normals[index, 2] > 0:
                draw.polygon([tuple(corner) for corner in flat[index]], fill=int(60 + 170 * shade[index]))
        pictures.append(np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS)))
    return np.repeat(np.stack(pictures)[..., None], 3, axis=-1).astype(np.float32) / 255


def block_sheet(blocks, *, columns: int, per_row: int, scale: int = 1) -> np.ndarray:
    """Lays out blocks of images, e.g. one face in nine poses each.

    Args:
      blocks: (N, K, H, W, 3) floats in [0, 1], N and K at least 1.
      columns: images per row of a block.
      per_row: blocks per row.
      scale: each pixel becomes a block of scale x scale.

    Returns:
      Picture, uint8; blocks are 8 white pixels apart.

    Raises:
      ValueError, TypeError: what `image_grid` refuses.
    """
    pictures = np.stack([image_grid(block, columns=columns, scale=scale, padding=1) for block in blocks])
    return image_grid(pictures.astype(np.float32) / 255, columns=min(per_row, len(blocks)), padding=8)


def thumbnail(picture: np.ndarray, size: int) -> np.ndarray:
    """A picture, uint8 (height, width, 3), as floats in [0, 1], no side longer than `size` pixels."""
    small = Image.fromarray(picture)
    small.thumbnail((size, size), Image.Resampling.LANCZOS)
    return np.asarray(small, np.float32) / 255


def png_bytes(picture: np.ndarray) -> bytes:
    """Encodes a picture, uint8 (height, width, 3), as PNG, by run lengths.

    Of photographs zlib's usual search for repetitions takes up to seven times as long, for no smaller a file.

    Raises:
      ValueError: not such an array.
    """
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3 or not picture.size:
        raise ValueError(
            f"png_bytes: picture is {picture.dtype} {picture.shape}; expected uint8 (height, width, 3). "
            "Pass a float batch through image_grid first."
        )
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG", compress_type=zlib.Z_RLE)
    return file.getvalue()


def save_png(path: str | Path, images) -> Path:
    """Writes a picture, uint8 (height, width, 3), or a float batch (laid out by `image_grid`), atomically.

    Folders on the way are made. It does not wait for the disk, as a picture can be made again, see `is_whole_png`.

    Returns:
      The path written.

    Raises:
      ValueError, TypeError: neither a picture nor a batch.
    """
    path = Path(path)
    picture = images if getattr(images, "dtype", None) == np.uint8 else image_grid(images)
    content = png_bytes(picture)
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.write_bytes(path, content, durable=False)
    return path


def save_film(path: str | Path, images, *, seconds: float = 0.1, scale: int = 1) -> Path:
    """Writes a batch as a strip, all side by side in a PNG, or as a GIF that shows one after the other without end.

    Args:
      path: ends in .png or .gif; folders on the way are made.
      images: (B, H, W, 3) floats in [0, 1], B at least 1.
      seconds: that a GIF shows each.
      scale: each pixel becomes a block of scale x scale.

    Returns:
      The path written, atomically.

    Raises:
      ValueError, TypeError: another suffix, a time below 0.02 s, which viewers slow down, or what `image_grid` refuses.
    """
    path = Path(path)
    if path.suffix not in (".png", ".gif"):
        raise ValueError(f"save_film: {path} ends in neither .png nor .gif. Name it {path.with_suffix('.gif').name}.")
    strip = image_grid(images, columns=max(1, len(images)), scale=scale)
    if path.suffix == ".png":
        return save_png(path, strip)
    checks.check_number("save_film: seconds", seconds, 0.02, 60)
    frames = [Image.fromarray(image_grid(image[None], scale=scale, padding=0)) for image in np.asarray(images)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 * seconds), loop=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.write_bytes(path, file.getvalue())
    return path


def _text_band(text: str, width: int, size: int) -> np.ndarray:
    """Draws `text`, wrapped, on a white band: uint8 (any, width, 3)."""
    font = _font(size)
    margin = size // 3
    lines = _wrap(text, font, width - 2 * margin)
    line_height = math.ceil(1.3 * size)
    band = Image.new("RGB", (width, len(lines) * line_height + margin), (PAPER,) * 3)
    draw = ImageDraw.Draw(band)
    for number, line in enumerate(lines):
        draw.text((margin, margin + number * line_height), line, fill=INK, font=font)
    return np.asarray(band)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Splits text into lines of at most `width` pixels, between words where possible, else inside them."""
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: prompts in Greek, Cyrillic or with accents stay readable."""
    import matplotlib as mpl

    return ImageFont.truetype(str(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
