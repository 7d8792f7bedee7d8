import io
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from promptgen_jax.store import images as im


def batch(num, size=4, seed=0):
    return np.random.default_rng(seed).random((num, size, size, 3), np.float32)


def test_to_uint8_clamps_and_rounds():
    values = np.array([-0.5, 0.0, 0.5 / 255 + 1e-6, 0.5, 1.0, 3.0], np.float32)
    out = im.to_uint8(values[:, None, None, None].repeat(3, axis=-1))
    assert out[:, 0, 0, 0].tolist() == [0, 0, 1, 128, 255, 255]
    assert out.dtype == np.uint8


def test_every_8_bit_value_survives():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    np.testing.assert_array_equal(im.to_uint8(levels.astype(np.float32) / 255), levels)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, jnp.bfloat16], ids=["numpy", "jax", "bfloat16"])
def test_array_kinds(kind):
    assert im.image_grid(kind(np.ones((1, 2, 2, 3), np.float32)), padding=0).min() == 255


@pytest.mark.parametrize(
    ("num", "columns", "scale", "padding", "shape"),
    [(4, None, 1, 2, (14, 14)), (5, None, 1, 0, (8, 12)), (3, 3, 2, 1, (10, 28)), (1, 4, 1, 1, (6, 21))],
)
def test_grid_shape(num, columns, scale, padding, shape):
    assert im.image_grid(batch(num), columns=columns, scale=scale, padding=padding).shape == (*shape, 3)


def test_grid_order_scale_and_blank():
    grid = im.image_grid(batch(3) * 0.9, columns=2, scale=3, padding=1)
    expected = im.to_uint8(batch(3) * 0.9).repeat(3, axis=1).repeat(3, axis=2)
    np.testing.assert_array_equal(grid[1:13, 1:13], expected[0])
    np.testing.assert_array_equal(grid[1:13, 14:26], expected[1])
    np.testing.assert_array_equal(grid[14:26, 1:13], expected[2])
    assert (grid[14:26, 14:26] == 255).all()
    assert (grid[13] == 255).all()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: im.image_grid(np.zeros((2, 3, 4, 4), np.float32)), ValueError, "Transpose from NCHW"),
        (lambda: im.image_grid(np.zeros((4, 4, 3), np.float32)), ValueError, "expected \\(batch"),
        (lambda: im.image_grid(np.full((1, 4, 4, 3), np.nan, np.float32)), ValueError, "NaN"),
        (lambda: im.image_grid(np.full((1, 4, 4, 3), 200.0, np.float32)), ValueError, "Divide 8-bit"),
        (lambda: im.image_grid(np.zeros((1, 4, 4, 3), int)), TypeError, "expected float32"),
        (lambda: im.image_grid(np.zeros((0, 4, 4, 3), np.float32)), ValueError, "empty batch"),
        (lambda: im.image_grid(batch(1), columns=0), ValueError, "image_grid: columns"),
        (lambda: im.image_grid(batch(1), scale=1.5), ValueError, "image_grid: scale"),
        (lambda: im.image_grid(batch(1), padding=-1), ValueError, "image_grid: padding"),
        (lambda: im.before_after_sheet([]), ValueError, "no rows"),
        (lambda: im.png_bytes(batch(1)), ValueError, "image_grid first"),
        (lambda: im.png_bytes(np.zeros((0, 4, 3), np.uint8)), ValueError, "expected uint8"),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_sheet_stacks_labelled_rows():
    rows = [("before", batch(4, 16)), ("after", batch(4, 16, seed=1))]
    sheet = im.before_after_sheet(rows, padding=1)
    grids = [im.image_grid(images, columns=4, padding=1) for _, images in rows]
    band = (sheet.shape[0] - sum(len(grid) for grid in grids)) // 2
    np.testing.assert_array_equal(sheet[band : band + len(grids[0])], grids[0])
    np.testing.assert_array_equal(sheet[-len(grids[1]) :], grids[1])
    for text in (sheet[:band], sheet[band + len(grids[0]) : -len(grids[1])]):
        assert text.min() < 80  # letters
        assert (text == 255).mean() > 0.5  # on paper


def test_sheet_takes_rows_of_different_sizes():
    sheet = im.before_after_sheet([("a", batch(2, 8)), ("b", batch(5, 24))], padding=0)
    assert sheet.shape[1] == 5 * 24


@pytest.mark.parametrize("text", ["a photo of a baby " * 4, "W" * 60, "πορτρέτο ребёнка", ""])
def test_labels_stay_inside_the_sheet(text):
    band = im._text_band(text, 120, 14)
    assert band.shape[1] == 120
    assert (band[:, -3:] == 255).all()
    font = im._font(14)
    lines = im._wrap(text, font, 112)
    assert all(font.getlength(line) <= 112 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_png_round_trip(tmp_path):
    picture = im.image_grid(batch(4))
    for path in (tmp_path / "new" / "folder" / "a.png", tmp_path / "new" / "folder" / "a.png"):
        assert im.save_png(path, picture) == path
        np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
    assert os.listdir(tmp_path / "new" / "folder") == ["a.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(im.png_bytes(picture)))), picture)


def test_save_png_lays_out_a_batch(tmp_path):
    images = jax.numpy.asarray(batch(4))
    im.save_png(tmp_path / "a.png", images)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), im.image_grid(images))


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = im.save_png(tmp_path / "a.png", batch(1))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="NaN"):
        im.save_png(path, np.full((1, 4, 4, 3), np.nan, np.float32))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        im.save_png(path, batch(1, seed=1))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]
