"""source_px says which pixel every cell shows: images whose colours are their own coordinates tell."""
from __future__ import annotations

import cv2
import numpy as np
import pytest

from dsac_ros.geometry.camera import cell_centres
from dsac_ros.training.augmentation import View, augmented_view, clean_view


def coordinates(width: int, height: int) -> np.ndarray:
    """Red is x, green is y."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x, y, np.full_like(x, 128)], -1).astype(np.uint8)


def shown(view: View, cells: np.ndarray) -> np.ndarray:
    """Colours (red, green) of the view at the centres of its cells, between pixels."""
    x, y = (cells[..., axis].astype(np.float32) for axis in (0, 1))
    return cv2.remap(view.image[..., :2].astype(np.float32), x, y, cv2.INTER_LINEAR).astype(np.float64)


SIZES = [(250, 200, 248, 200), (200, 250, 200, 248), (250, 200, 120, 96), (120, 90, 240, 176)]


def off(source_px: np.ndarray, colours: np.ndarray, width: int, height: int, margin: float) -> np.ndarray:
    inside = ((source_px > margin) & (source_px < [width - 1 - margin, height - 1 - margin])).all(-1)
    assert inside.sum() > 30
    return (colours - source_px)[inside]


@pytest.mark.parametrize(('width', 'height', 'w', 'h'), SIZES)
def test_clean_view(width: int, height: int, w: int, h: int) -> None:
    """Whole numbers in the image: 0.5 px at a cell, less in the mean; half a cell or half a pixel of a wrong convention shows."""
    cells = cell_centres(w, h, 8)
    view = clean_view(coordinates(width, height), w, h, cells)
    assert view.image.shape == (h, w, 3) and view.source_px.shape == (h // 8, w // 8, 2)
    error = off(view.source_px, shown(view, cells), width, height, 1.0)
    assert np.abs(error).max() < 0.8 and np.abs(error.mean(0)).max() < 0.15


@pytest.mark.parametrize(('width', 'height', 'w', 'h'), SIZES)
def test_augmented_views(width: int, height: int, w: int, h: int) -> None:
    """Rounding down to whole numbers takes 0.5 off in the mean, warping is good to 1/32 px; checked over 25 random looks."""
    cells, image, rng = cell_centres(w, h, 8), coordinates(width, height), np.random.default_rng(1)
    spread = []
    for _ in range(25):
        view = augmented_view(image, w, h, cells, 0.8 * width, rng, max_gain=0.0)
        assert view.image.shape == (h, w, 3) and view.image.dtype == np.uint8
        error = off(view.source_px, shown(view, cells), width, height, 6.0)
        assert np.abs(error).max() < 1.3 and np.abs(error.mean(0) + 0.25).max() < 0.4, error.mean(0)
        spread.append(view.source_px)
    assert np.std(spread, axis=0).max() > 5  # the looks differ


def test_limits_of_zero_give_the_whole_image() -> None:
    cells = cell_centres(248, 200, 8)
    view = augmented_view(coordinates(250, 200), 248, 200, cells, 200.0, np.random.default_rng(0), 0.0, 0.0, 1.0, 0.0)
    clean = clean_view(coordinates(250, 200), 248, 200, cells)
    np.testing.assert_allclose(view.source_px, clean.source_px, atol=1e-9)


def test_brightness_changes_and_places_do_not() -> None:
    cells = cell_centres(248, 200, 8)
    image = np.random.default_rng(0).integers(60, 190, (200, 250, 3)).astype(np.uint8)
    with_gain = [augmented_view(image, 248, 200, cells, 200.0, np.random.default_rng(seed)) for seed in range(8)]
    without = [augmented_view(image, 248, 200, cells, 200.0, np.random.default_rng(seed), max_gain=0.0) for seed in range(8)]
    assert np.std([v.image.mean() for v in with_gain]) > 3 > np.std([v.image.mean() for v in without])
    for a, b in zip(with_gain, without):
        np.testing.assert_array_equal(a.source_px, b.source_px)


def test_the_generator_decides() -> None:
    cells, image = cell_centres(248, 200, 8), coordinates(250, 200)
    a, b, c = (augmented_view(image, 248, 200, cells, 200.0, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(a.image, b.image) and not np.array_equal(a.image, c.image)
