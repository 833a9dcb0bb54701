"""What single objects of a synthetic room show: pictures, posters, windows, doors, screens, books, drawer fronts.

Painters as in textures.py: painter(rng, height, width, texels_per_metre) -> (height, width, 3) float32 RGB in 0 to 1.
"""
from __future__ import annotations

import cv2
import numpy as np

from dsac_ros.data.synthetic.textures import Colour, clouds, colour, flat, wood

WORDS = ('MUSEUM', 'JAZZ', 'OSTSEE', 'KINO', 'ALPEN', 'RADIO', 'CIRCUS', 'BOTANIK', 'LUNA', 'EXPO', 'MARKT', 'ATLAS', 'ROBOT', 'TANGO',
         'HAFEN', 'COMET')


def _text(image: np.ndarray, words: str, x: float, y: float, tall: float, rgb: Colour) -> None:
    """Write words with their base line at (x, y), `tall` pixels high."""
    thickness = max(int(tall / 6), 1)
    cv2.putText(image, words, (int(x), int(y)), cv2.FONT_HERSHEY_DUPLEX, tall / 22, rgb, thickness, cv2.LINE_AA)


def landscape(rng: np.random.Generator, height: int, width: int, tpm: float) -> np.ndarray:
    """Sky with clouds and a sun, ranges of hills towards the viewer, trees."""
    top, low = np.float32(colour(rng, (0.3, 0.7), (0.5, 0.9))), np.float32(colour(rng, (0.1, 0.4), (0.8, 1.0)))
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    image = np.ascontiguousarray(np.broadcast_to(top * (1 - ramp) + low * ramp, (height, width, 3)))
    white = np.clip(clouds(rng, height, width, (width * 0.5, height * 0.15), 6), 0, 1.5)[..., None] * 0.35
    image += (1 - image) * white
    sun = (int(rng.uniform(0.1, 0.9) * width), int(rng.uniform(0.1, 0.35) * height))
    cv2.circle(image, sun, max(int(0.07 * width), 1), (1.0, 0.9, 0.6), -1, cv2.LINE_AA)
    rows = np.arange(height, dtype=np.float32)[:, None]
    for k in range(5):
        ridge = height * (0.35 + 0.13 * k) + height * 0.07 * clouds(rng, 1, width, (width * 0.5, 1.0), 6, 0.55)
        tint = np.float32(colour(rng, (0.3, 0.7), (0.2, 0.75)))
        shade = 1 + 0.25 * clouds(rng, height, width, (0.1 * width, 0.05 * height), 5, 0.8)
        image = np.where((rows > ridge)[..., None], tint * shade[..., None], image)
    for _ in range(rng.integers(4, 14)):
        x, y, s = rng.uniform(0, 1) * width, rng.uniform(0.65, 1) * height, rng.uniform(0.04, 0.12) * height
        crown = np.int32([[x - s * 0.4, y], [x + s * 0.4, y], [x, y - 1.8 * s]])
        cv2.fillPoly(image, [crown], colour(rng, (0.4, 0.8), (0.1, 0.5)), cv2.LINE_AA)
    return np.clip(image, 0, 1)


def abstract(rng: np.random.Generator, height: int, width: int, tpm: float) -> np.ndarray:
    """Overlapping discs, polygons and strokes on a cloudy ground."""
    image = flat(height, width, colour(rng)) * (1 + 0.2 * clouds(rng, height, width, (0.4 * width, 0.4 * height), 6))[..., None]
    size = min(height, width)
    for _ in range(rng.integers(12, 35)):
        p, s, kind = rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.04, 0.25) * size, rng.integers(3)
        if kind == 0:
            cv2.circle(image, tuple(int(c) for c in p), int(s), colour(rng, (0.2, 1.0), (0.1, 1.0)), rng.choice([-1, max(int(s / 5), 1)]),
                       cv2.LINE_AA)
        elif kind == 1:
            points = (p + rng.normal(0, s, (rng.integers(3, 6), 2))).astype(np.int32)
            cv2.fillPoly(image, [cv2.convexHull(points)], colour(rng, (0.2, 1.0), (0.1, 1.0)), cv2.LINE_AA)
        else:
            points = (p + np.cumsum(rng.normal(0, s / 3, (12, 2)), 0)).astype(np.int32)
            cv2.polylines(image, [points], False, colour(rng, (0.2, 1.0), (0.0, 1.0)), max(int(s / 7), 1), cv2.LINE_AA)
    return np.clip(image * (1 + 0.06 * clouds(rng, height, width, (30, 30), 5, 0.9))[..., None], 0, 1)


def grid(rng: np.random.Generator, height: int, width: int, tpm: float) -> np.ndarray:
    """A picture of rectangles cut again and again, in a few strong colours."""
    image = flat(height, width, (0.95, 0.93, 0.88))
    line = max(int(0.008 * tpm), 1)
    todo = [(0, 0, width, height)]
    while todo:
        x0, y0, x1, y1 = todo.pop()
        w, h = x1 - x0, y1 - y0
        if max(w, h) > rng.uniform(0.15, 0.5) * max(width, height) and min(w, h) > 6 * line:
            cut = rng.uniform(0.3, 0.7)
            todo += ([(x0, y0, int(x0 + cut * w), y1), (int(x0 + cut * w), y0, x1, y1)] if w > h else
                     [(x0, y0, x1, int(y0 + cut * h)), (x0, int(y0 + cut * h), x1, y1)])
            continue
        if rng.uniform() < 0.7:
            cv2.rectangle(image, (x0, y0), (x1, y1), colour(rng, (0.3, 1.0), (0.2, 1.0)), -1)
        cv2.rectangle(image, (x0, y0), (x1, y1), (0.05, 0.05, 0.05), line)
    return np.clip(image * (1 + 0.04 * clouds(rng, height, width, (50, 50), 6, 0.9))[..., None], 0, 1)


def poster(rng: np.random.Generator, height: int, width: int, tpm: float) -> np.ndarray:
    """A poster: a picture, one large word and lines of small print."""
    paper, ink = colour(rng, (0.1, 0.8), (0.6, 1.0)), colour(rng, (0.4, 1.0), (0.05, 0.35))
    image = flat(height, width, paper)
    low, high, pad = int(height * rng.uniform(0.1, 0.25)), int(height * rng.uniform(0.6, 0.75)), max(int(0.06 * width), 1)
    if high - low > 8 and width - 2 * pad > 8:
        image[low:high, pad:width - pad] = (landscape, abstract, grid)[rng.integers(3)](rng, high - low, width - 2 * pad, tpm)
    word = WORDS[rng.integers(len(WORDS))]
    _text(image, word, pad, low - 0.02 * height, min(0.75 * low, 1.1 * width / len(word)), ink)
    y = high + 0.06 * height
    while y < 0.96 * height:
        tall = rng.uniform(0.015, 0.04) * height
        letters = ''.join(rng.choice(list('ABCDEFGHIKLMNORSTUVWZ  0123456789'), int(rng.uniform(0.4, 0.9) * width / tall)))
        _text(image, letters, pad, y, tall, ink)
        y += 1.7 * tall
    return np.clip(image * (1 + 0.03 * clouds(rng, height, width, (60, 60), 5))[..., None], 0, 1)


def framed(rng: np.random.Generator, height: int, width: int, tpm: float) -> np.ndarray:
    """Any of the pictures above in a frame, with or without a mount."""
    image = wood(rng, height, width, tpm, colour(rng, (0.0, 0.7), (0.1, 0.7)))
    border = max(int(0.03 * tpm), 1)
    if rng.uniform() < 0.4:
        cv2.rectangle(image, (border, border), (width - border, height - border), (0.93, 0.92, 0.88), -1)
        border = int(0.08 * tpm)
    inner = (height - 2 * border, width - 2 * border)
    if min(inner) > 8:
        picture = (landscape, abstract, grid, poster, abstract)[rng.integers(5)](rng, *inner, tpm)
        image[border:border + inner[0], border:border + inner[1]] = picture
    return image


def window(rng: np.random.Generator, height: int, width: int, tpm: float) -> np.ndarray:
    """A window on a landscape with houses: bright, framed, with a cross bar that is not in the middle."""
    image = np.clip(landscape(rng, height, width, tpm) * 0.8 + 0.25, 0, 1)
    for _ in range(rng.integers(2, 6)):
        w, h, x = rng.uniform(0.1, 0.25) * width, rng.uniform(0.15, 0.5) * height, rng.uniform(0, 0.9) * width
        cv2.rectangle(image, (int(x), int(height - h)), (int(x + w), height), colour(rng, (0.1, 0.5), (0.5, 0.9)), -1)
        for _ in range(rng.integers(3, 14)):
            px, py = x + rng.uniform(0.05, 0.8) * w, height - rng.uniform(0.15, 0.95) * h
            cv2.rectangle(image, (int(px), int(py)), (int(px + 0.15 * w), int(py + 0.09 * h)), (0.2, 0.22, 0.3), -1)
    frame, rgb = max(int(0.05 * tpm), 1), colour(rng, (0.0, 0.3), (0.6, 0.95))
    cv2.rectangle(image, (0, 0), (width - 1, height - 1), rgb, 2 * frame)
    x, y = int(rng.uniform(0.35, 0.65) * width), int(rng.uniform(0.25, 0.4) * height)
    cv2.line(image, (x, 0), (x, height), rgb, frame)
    cv2.line(image, (0, y), (width, y), rgb, frame)
    return image


def door(rng: np.random.Generator, height: int, width: int, tpm: float) -> np.ndarray:
    """A panelled door with a handle and a notice."""
    rgb = colour(rng, (0.2, 0.6), (0.35, 0.8))
    image = wood(rng, height, width, tpm, rgb)
    dark, line = tuple(0.55 * c for c in rgb), max(int(0.015 * tpm), 1)
    y = 0.06
    while y < 0.85:
        h = rng.uniform(0.15, 0.35)
        cv2.rectangle(image, (int(0.15 * width), int(y * height)), (int(0.85 * width), int(min(y + h, 0.95) * height)), dark, line)
        y += h + 0.05
    cv2.rectangle(image, (int(0.86 * width), int(0.5 * height)), (int(0.97 * width), int(0.53 * height)), (0.85, 0.8, 0.55), -1)
    h, w = int(0.3 * tpm), int(0.21 * tpm)
    y, x = int(rng.uniform(0.15, 0.4) * height), int(rng.uniform(0.2, 0.5) * width)
    if y + h < height and x + w < width and h > 8:
        image[y:y + h, x:x + w] = poster(rng, h, w, tpm)
    return image


def screen(rng: np.random.Generator, height: int, width: int, tpm: float) -> np.ndarray:
    """A monitor or television: windows with lines of text over a picture, a black bezel."""
    image = (landscape, abstract)[rng.integers(2)](rng, height, width, tpm)
    for _ in range(rng.integers(1, 4)):
        w, h = rng.uniform(0.25, 0.6) * width, rng.uniform(0.3, 0.6) * height
        x, y = rng.uniform(0, 1) * (width - w), rng.uniform(0, 1) * (height - h)
        cv2.rectangle(image, (int(x), int(y)), (int(x + w), int(y + h)), colour(rng, (0, 0.2), (0.8, 1)), -1)
        cv2.rectangle(image, (int(x), int(y)), (int(x + w), int(y + 0.12 * h)), colour(rng), -1)
        for k in range(2, 12):
            start = x + w * rng.uniform(0.05, 0.25)
            cv2.line(image, (int(start), int(y + k * h / 12)), (int(start + rng.uniform(0.2, 0.7) * w), int(y + k * h / 12)),
                     colour(rng, (0.2, 0.9), (0.1, 0.5)),
                     max(int(0.03 * h), 1))
    cv2.rectangle(image, (0, 0), (width - 1, height - 1), (0.05, 0.05, 0.06), 2 * max(int(0.015 * tpm), 1))
    return image


def books(rng: np.random.Generator, height: int, width: int, tpm: float) -> np.ndarray:
    """A row of book spines of random width, height, colour and lettering."""
    image = flat(height, width, (0.07, 0.06, 0.05))
    x = 0.0
    while x < width:
        w, top = rng.uniform(0.014, 0.055) * tpm + 1, int(rng.uniform(0, 0.22) * height)
        x0, x1, cover = int(x), int(x + w), colour(rng, (0.1, 0.9), (0.15, 0.95))
        cv2.rectangle(image, (x0, top), (max(x1 - 1, x0), height), cover, -1)
        ink = tuple(1 - c for c in cover)
        for _ in range(rng.integers(1, 4)):
            y = rng.uniform(0.05, 0.9)
            bar = (int(top + y * (height - top)), int(top + (y + rng.uniform(0.02, 0.2)) * (height - top)))
            cv2.rectangle(image, (int(x0 + 0.2 * w), bar[0]), (int(x0 + 0.75 * w), bar[1]), ink if rng.uniform() < 0.5 else colour(rng), -1)
        x += w
    return image


def drawers(rng: np.random.Generator, height: int, width: int, tpm: float, rgb: Colour) -> np.ndarray:
    """The front of a cabinet: doors and drawers of unequal size, with handles, in shades of one wood."""
    image = wood(rng, height, width, tpm, rgb)
    columns = np.concatenate([[0], np.sort(rng.uniform(0.2, 0.8, max(int(width / (0.6 * tpm)), 1))), [1]]) * width
    dark, line = tuple(0.4 * c for c in rgb), max(int(0.01 * tpm), 1)
    for x0, x1 in zip(columns[:-1].astype(int), columns[1:].astype(int)):
        rows = np.concatenate([[0], np.sort(rng.uniform(0.15, 0.85, rng.integers(0, 4))), [1]]) * height
        for y0, y1 in zip(rows[:-1].astype(int), rows[1:].astype(int)):
            image[y0:y1, x0:x1] *= rng.uniform(0.75, 1.2)
            cv2.rectangle(image, (int(x0), int(y0)), (int(x1), int(y1)), dark, line)
            cx, cy = int((x0 + x1) / 2 + rng.uniform(-0.3, 0.3) * (x1 - x0)), int((y0 + y1) / 2)
            cv2.line(image, (cx - int(0.05 * tpm), cy), (cx + int(0.05 * tpm), cy), (0.8, 0.78, 0.7), max(int(0.014 * tpm), 1), cv2.LINE_AA)
    return np.clip(image, 0, 1)


def carton(rng: np.random.Generator, height: int, width: int, tpm: float) -> np.ndarray:
    """The side of a packing box: cardboard, tape, stamps and a label."""
    rgb = tuple(np.array([0.66, 0.5, 0.33]) * rng.uniform(0.7, 1.2))
    image = flat(height, width, rgb) * (1 + 0.08 * clouds(rng, height, width, (0.15 * tpm, 0.15 * tpm), 6))[..., None]
    x = int(rng.uniform(0.3, 0.7) * width)
    cv2.rectangle(image, (x, 0), (int(x + 0.05 * tpm), height), colour(rng, (0.1, 0.5), (0.6, 0.9)), -1)
    _text(image, WORDS[rng.integers(len(WORDS))], 0.05 * width, rng.uniform(0.3, 0.9) * height, 0.16 * min(width, height), (0.12, 0.1, 0.1))
    x, y = rng.uniform(0, 0.6, 2) * (width, height)
    cv2.rectangle(image, (int(x), int(y)), (int(x + 0.35 * width), int(y + 0.3 * height)), colour(rng, (0.0, 0.9), (0.7, 1.0)), -1)
    return np.clip(image, 0, 1)
