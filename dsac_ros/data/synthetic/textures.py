"""What surfaces of a synthetic room look like: painters from a random generator to reflectance images.

A painter is called as painter(rng, height, width, texels_per_metre) and returns (height, width, 3) float32 RGB in 0 to 1. All of them
mix structure from decimetres to millimetres and never repeat it: what a network sees of one square of wall must not look like another.
"""
from __future__ import annotations

from functools import partial
from typing import Callable

import cv2
import numpy as np

Painter = Callable[[np.random.Generator, int, int, float], np.ndarray]
Colour = tuple[float, float, float]


def colour(rng: np.random.Generator, saturation: tuple[float, float] = (0.2, 0.7), value: tuple[float, float] = (0.25, 0.85)) -> Colour:
    """A random RGB colour of any hue, saturation and value uniform in the given ranges."""
    hsv = np.float32([[[rng.uniform(0, 360), rng.uniform(*saturation), rng.uniform(*value)]]])
    return tuple(float(c) for c in cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0])


def clouds(rng: np.random.Generator, height: int, width: int, feature_px: tuple[float, float], octaves: int = 5,
           gain: float = 0.6) -> np.ndarray:
    """Multi-scale noise (height, width) float32, about zero mean and unit deviation; feature_px: (x, y) size of its largest blobs."""
    out = np.zeros((1, 1), np.float32)
    amplitude, power = 1.0, 0.0
    for octave in range(octaves):
        step_x, step_y = (max(f / 2 ** octave, 1.0) for f in feature_px)
        size = int(width / step_x) + 3, int(height / step_y) + 3
        # each octave is added at its own resolution, so that all of them together cost little more than the finest
        out = cv2.resize(out, size, interpolation=cv2.INTER_CUBIC)
        out += amplitude * rng.standard_normal(size[::-1], np.float32)
        power += amplitude ** 2
        amplitude *= gain
        if step_x == step_y == 1.0:
            break
    large = cv2.resize(out, (int(size[0] * step_x), int(size[1] * step_y)), interpolation=cv2.INTER_CUBIC)
    # cut from the middle: the border of an enlarged grid is flat
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return large[top:top + height, left:left + width] / np.float32(np.sqrt(power) * 0.7)


def flat(height: int, width: int, rgb: Colour) -> np.ndarray:
    """An image of one colour."""
    return np.full((height, width, 3), rgb, np.float32)


def flat_painter(rng: np.random.Generator, height: int, width: int, tpm: float) -> np.ndarray:
    """One pale colour, for edges that hardly show."""
    return flat(height, width, colour(rng, (0.0, 0.3), (0.5, 0.9)))


def plaster(rng: np.random.Generator, height: int, width: int, tpm: float, rgb: Colour, contrast: float = 0.09) -> np.ndarray:
    """Painted wall: blotches from a metre to millimetres, and large soft patches of a second hue."""
    image = flat(height, width, rgb) * (1 + contrast * clouds(rng, height, width, (0.5 * tpm, 0.5 * tpm), 8, 0.75))[..., None]
    patch = clouds(rng, height, width, (1.1 * tpm, 1.1 * tpm), 5, 0.5)
    other = np.float32(colour(rng, (0.2, 0.6), (0.4, 0.9)))
    weight = (0.45 / (1 + np.exp(np.clip(-6 * (patch - 0.7), -30, 30))))[..., None].astype(np.float32)
    image = np.ascontiguousarray(image * (1 - weight) + other * weight)
    # flakes of paint: corners for what would else be a cloud with nothing to hold on to
    for _ in range(int(height * width / (0.13 * tpm) ** 2)):
        x, y = int(rng.uniform(0, width)), int(rng.uniform(0, height))
        outline = (np.array([x, y]) + rng.normal(0, rng.uniform(0.006, 0.035) * tpm, (6, 2))).astype(np.int32)
        shade = tuple((image[y, x] * rng.choice([0.72, 0.82, 1.14, 1.25]) + rng.uniform(-0.04, 0.04, 3)).tolist())
        cv2.fillPoly(image, [cv2.convexHull(outline)], shade, cv2.LINE_AA)
    return np.clip(image, 0, 1)


def wallpaper(rng: np.random.Generator, height: int, width: int, tpm: float, rgb: Colour) -> np.ndarray:
    """Vertical bands of random width and shade with scattered leaves of random size and turn."""
    image = plaster(rng, height, width, tpm, rgb, 0.06)
    x = 0
    while x < width:
        band = int(rng.uniform(0.06, 0.4) * tpm) + 1
        image[:, x:x + band] *= rng.uniform(0.72, 1.1)
        x += band
    for _ in range(int(height * width / (0.17 * tpm) ** 2)):
        centre = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
        axes = (int(rng.uniform(0.02, 0.09) * tpm) + 1, int(rng.uniform(0.008, 0.03) * tpm) + 1)
        shade = tuple(np.clip(np.array(rgb) * rng.uniform(0.35, 1.3) + rng.uniform(-0.12, 0.12, 3), 0, 1).tolist())
        cv2.ellipse(image, centre, axes, rng.uniform(0, 180), 0, 360, shade, -1, cv2.LINE_AA)
    return np.clip(image, 0, 1)


def _cells(rng: np.random.Generator, height: int, width: int, tpm: float, cell: tuple[float, float], rgb: Colour, joint: Colour,
           spread: float, stagger: bool) -> np.ndarray:
    """Courses of bricks, tiles or planks, (long, high) metres each, every one with its own shade and surface."""
    image = flat(height, width, joint)
    long, high = cell[0] * tpm, cell[1] * tpm
    grain = clouds(rng, height, width, (long * 0.6, high * 0.5), 5, 0.7)
    gap = max(int(0.006 * tpm), 1)
    for row in range(int(height / high) + 1):
        x = -rng.uniform(0, 1) * long if stagger else 0.0
        while x < width:
            length = long * (rng.uniform(0.7, 1.3) if stagger else 1.0)
            y0, y1, x0, x1 = int(row * high), int((row + 1) * high) - gap, int(max(x, 0)), int(x + length) - gap
            if x1 > x0 and y1 > y0:
                shade = np.float32(np.array(rgb) * (1 + spread * rng.standard_normal()) + 0.15 * spread * rng.standard_normal(3))
                image[y0:y1, x0:x1] = shade * (1 + 0.12 * grain[y0:y1, x0:x1])[..., None]
            x += length
    return np.clip(image, 0, 1)


def bricks(rng: np.random.Generator, height: int, width: int, tpm: float, rgb: Colour) -> np.ndarray:
    """Brickwork under large stains."""
    stain = 1 + 0.12 * clouds(rng, height, width, (0.9 * tpm, 0.9 * tpm), 4)
    return np.clip(_cells(rng, height, width, tpm, (0.24, 0.075), rgb, (0.72, 0.69, 0.64), 0.15, True) * stain[..., None], 0, 1)


def tiles(rng: np.random.Generator, height: int, width: int, tpm: float, rgb: Colour) -> np.ndarray:
    """Stone tiles."""
    return _cells(rng, height, width, tpm, (0.45, 0.45), rgb, (0.35, 0.34, 0.32), 0.16, False)


def planks(rng: np.random.Generator, height: int, width: int, tpm: float, rgb: Colour) -> np.ndarray:
    """Floor boards with grain along them."""
    image = _cells(rng, height, width, tpm, (1.1, 0.14), rgb, (0.12, 0.09, 0.07), 0.13, True)
    grain = clouds(rng, height, width, (0.5 * tpm, 0.025 * tpm), 4, 0.8)
    wear = clouds(rng, height, width, (0.8 * tpm, 0.8 * tpm), 5)
    return np.clip(image * (1 + 0.10 * grain + 0.08 * wear)[..., None], 0, 1)


def wood(rng: np.random.Generator, height: int, width: int, tpm: float, rgb: Colour) -> np.ndarray:
    """A board with grain along its longer side and some knots."""
    long, fine = (0.6 * tpm, 0.03 * tpm), (0.03 * tpm, 0.6 * tpm)
    grain = clouds(rng, height, width, long if width >= height else fine, 5, 0.75)
    image = flat(height, width, rgb) * (1 + 0.13 * grain)[..., None]
    for _ in range(rng.poisson(4 * height * width / tpm ** 2)):
        centre, size = (int(rng.uniform(0, width)), int(rng.uniform(0, height))), rng.uniform(0.008, 0.03) * tpm
        for ring, shade in ((1.0, 0.6), (0.6, 0.4)):
            axes = (int(size * ring * (1.6 if width >= height else 1)) + 1, int(size * ring * (1 if width >= height else 1.6)) + 1)
            cv2.ellipse(image, centre, axes, 0, 0, 360, tuple(c * shade for c in rgb), -1, cv2.LINE_AA)
    return np.clip(image, 0, 1)


def fabric(rng: np.random.Generator, height: int, width: int, tpm: float, rgb: Colour) -> np.ndarray:
    """Upholstery: folds, weave and a loose pattern of discs or strokes of a second colour."""
    image = flat(height, width, rgb) * (1 + 0.10 * clouds(rng, height, width, (0.25 * tpm, 0.25 * tpm), 7, 0.8))[..., None]
    other, strokes = colour(rng), rng.uniform() < 0.5
    for _ in range(int(height * width / (0.11 * tpm) ** 2)):
        p, size = rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.01, 0.05) * tpm
        shade = tuple(np.clip(np.array(other) * rng.uniform(0.6, 1.3), 0, 1).tolist())
        if strokes:
            q = p + rng.normal(0, 1.5 * size, 2)
            cv2.line(image, tuple(int(c) for c in p), tuple(int(c) for c in q), shade, max(int(0.012 * tpm), 1), cv2.LINE_AA)
        else:
            cv2.circle(image, tuple(int(c) for c in p), max(int(size * 0.7), 1), shade, -1, cv2.LINE_AA)
    return np.clip(image, 0, 1)


def rug(rng: np.random.Generator, height: int, width: int, tpm: float) -> np.ndarray:
    """A rug: border bands round a field of overlapping polygons."""
    image = fabric(rng, height, width, tpm, colour(rng, (0.4, 0.8), (0.3, 0.7)))
    for _ in range(28):
        points = rng.uniform(0, 1, 2) * (width, height) + rng.normal(0, 0.22 * tpm, (rng.integers(3, 7), 2))
        cv2.fillPoly(image, [cv2.convexHull(points.astype(np.int32))], colour(rng), cv2.LINE_AA)
    for inset in (0.03, 0.09, 0.14):
        d = int(inset * tpm)
        cv2.rectangle(image, (d, d), (width - 1 - d, height - 1 - d), colour(rng), max(int(0.025 * tpm), 1))
    pile = 1 + 0.08 * clouds(rng, height, width, (0.12 * tpm, 0.12 * tpm), 6, 0.9)
    return np.clip(image * pile[..., None], 0, 1)


def ceiling(rng: np.random.Generator, height: int, width: int, tpm: float, rgb: Colour) -> np.ndarray:
    """A pale ceiling with stains, cracks and vents."""
    image = plaster(rng, height, width, tpm, rgb, 0.06)
    for _ in range(14):
        steps = rng.normal(0, 0.06 * tpm, (40, 2)) + rng.normal(0, 0.05 * tpm, 2)
        line = (rng.uniform(0, 1, 2) * (width, height) + np.cumsum(steps, 0)).astype(np.int32)
        cv2.polylines(image, [line], False, tuple(c * rng.uniform(0.45, 0.8) for c in rgb), max(int(rng.uniform(0.004, 0.015) * tpm), 1),
                      cv2.LINE_AA)
    for _ in range(5):
        x, y = rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height
        w, h = rng.uniform(0.1, 0.5, 2) * tpm
        cv2.rectangle(image, (int(x), int(y)), (int(x + w), int(y + h)), colour(rng, (0.0, 0.3), (0.4, 0.7)), -1)
        for k in range(1, 6):
            cv2.line(image, (int(x), int(y + k * h / 6)), (int(x + w), int(y + k * h / 6)), (0.2, 0.2, 0.2), max(int(0.008 * tpm), 1))
    return image


def mixture(rng: np.random.Generator, painters: list[Painter]) -> Painter:
    """One of the painters."""
    return painters[int(rng.integers(len(painters)))]


def wall(rng: np.random.Generator, kind: int) -> Painter:
    """The painter of a wall; walls of one room take different kinds, so that none looks like another."""
    rgb = colour(rng, (0.1, 0.4), (0.5, 0.8))
    brick = tuple(np.array([0.62, 0.33, 0.25]) * rng.uniform(0.8, 1.3))
    return (partial(plaster, rgb=rgb), partial(wallpaper, rgb=rgb), partial(bricks, rgb=brick),
            partial(plaster, rgb=rgb, contrast=0.12))[kind % 4]


def floor(rng: np.random.Generator) -> Painter:
    """The painter of a floor."""
    brown = tuple(np.clip(np.array([0.55, 0.38, 0.24]) * rng.uniform(0.6, 1.4), 0, 1))
    return mixture(rng, [partial(planks, rgb=brown), partial(tiles, rgb=colour(rng, (0.05, 0.3), (0.4, 0.8))),
                         partial(planks, rgb=colour(rng, (0.05, 0.3), (0.3, 0.6)))])
