"""May a robot believe it: of good frames, of damaged ones and of frames of other places, how many are accepted, and how many wrongly?

    python -m benchmarks.integrity kitchen.dsacmap $D/kitchen:val_near,val_far --others $D/lounge $D/bonsai

Every frame by itself, by the localizer's own tests; the node lets a pose out only after several frames that agree.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import cv2
import numpy as np

from dsac_ros.data.opening import open_source
from dsac_ros.errors import ConfigError, DsacError
from dsac_ros.evaluation.metrics import pose_error
from dsac_ros.localizer import Localizer
from dsac_ros.records import Frame
from dsac_ros.tracking.tracker import Tracker

MODALITIES = ('rgb', 'rgbd')
WRONG_M, WRONG_DEG = 0.25, 5.0
Damage = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass
class Count:
    """Frames, accepted ones, those of them that are wrong, and those within 5 cm and 5 degrees."""

    frames: int = 0
    accepted: int = 0
    wrong: int = 0
    exact: int = 0


def brighter(gain: float, noise: float = 0.0) -> Damage:
    return lambda image, rng: np.clip(gain * image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)


def shaken(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return cv2.filter2D(image, -1, np.full((1, 31), 1 / 31))


def half_covered(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    out = image.copy()
    out[:, :image.shape[1] // 2] = 20
    return out


def tiles_mixed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sixteen parts of the image, each in the place of another: all details are there, and no view."""
    rows, columns = (size // 4 for size in image.shape[:2])
    tiles = [image[r * rows:(r + 1) * rows, c * columns:(c + 1) * columns] for r in range(4) for c in range(4)]
    mixed = [tiles[index] for index in rng.permutation(16)]
    return np.concatenate([np.concatenate(mixed[4 * r:4 * r + 4], 1) for r in range(4)])


def badly_packed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return cv2.imdecode(cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 5])[1], cv2.IMREAD_COLOR)


DAMAGES: dict[str, Damage] = {
    'blurred, 4 px': lambda image, rng: cv2.GaussianBlur(image, (0, 0), 4.0),
    'shaken, 31 px': shaken,
    'dark, a tenth of the light': brighter(0.1, 2.0),
    'too bright, four times': brighter(4.0),
    'noise of 50 grey levels': brighter(1.0, 50.0),
    'JPEG of quality 5': badly_packed,
    'left half covered': half_covered,
    'mirrored': lambda image, rng: np.ascontiguousarray(image[:, ::-1]),
    'tiles in another order': tiles_mixed,
    'noise alone': lambda image, rng: rng.integers(0, 256, image.shape, np.uint8),
    'black': lambda image, rng: np.zeros_like(image)}
OTHER_VIEWS = ('mirrored', 'tiles in another order')


def damaged(frames: Sequence[Frame]) -> Iterator[tuple[str, list[Frame], bool]]:
    """Kind, frames, and whether the view is still that of the reference."""
    for kind, damage in DAMAGES.items():
        rng = np.random.default_rng(1)
        yield kind, [replace(frame, image=damage(frame.image, rng)) for frame in frames], kind not in OTHER_VIEWS
    if all(frame.depth is not None for frame in frames):
        ahead = frames[len(frames) // 2:] + frames[:len(frames) // 2]
        yield 'depth of another frame', [replace(frame, depth=other.depth) for frame, other in zip(frames, ahead)], True
    for kind, gain in (('focal length 30 % too long', 1.3), ('focal length 5 % too long', 1.05)):
        cameras = [replace(frame.camera, fx=gain * frame.camera.fx, fy=gain * frame.camera.fy) for frame in frames]
        yield kind, [replace(frame, camera=camera) for frame, camera in zip(frames, cameras)], True


def asked(localizer: Localizer | Tracker, frames: Iterable[Frame], modality: str, is_there: bool) -> Count:
    """is_there: whether a pose can be right; else every one that is accepted is wrong."""
    count = Count()
    for frame in frames:
        estimate = localizer.localize(frame, modality)
        metres, degrees = np.inf, 180.0
        if is_there:
            metres, degrees = pose_error(estimate.map_from_camera, frame.map_from_camera)
        count.frames += 1
        if estimate.verdict.accepted:
            count.accepted += 1
            count.wrong += metres > WRONG_M or degrees > WRONG_DEG
            count.exact += metres < 0.05 and degrees < 5.0
    return count


def frames_of(text: str) -> list[Frame]:
    """FOLDER, or FOLDER:SPLIT[,SPLIT]. Raises ConfigError, DataError."""
    folder, _, splits = text.partition(':')
    return list(chain.from_iterable(open_source(folder, split) for split in (splits.split(',') if splits else [None])))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.integrity', description=__doc__.splitlines()[0])
    parser.add_argument('map')
    parser.add_argument('good', help='FOLDER[:SPLIT,SPLIT] of the place of the map, frames that it was not made of')
    parser.add_argument('--others', nargs='*', default=[], help='the same of other places')
    options = parser.parse_args(arguments)
    try:
        good = [frame for frame in frames_of(options.good) if frame.map_from_camera is not None]
        if not good:
            raise ConfigError(f'{options.good}: no frame has a reference pose')
        kinds = chain([('good', good, True)], damaged(good), ((other, frames_of(other), False) for other in options.others))
        columns = ' | '.join(f'{modality}: accepted %, within 5 cm 5 deg %, wrong' for modality in MODALITIES)
        print(f'{options.map}, {options.good}; wrong: more than {WRONG_M} m or {WRONG_DEG} degrees off, or of another place\n'
              f'| frames | number | {columns} |\n|---|---|---|---|')
        total = {modality: Count() for modality in MODALITIES}
        localizer = Localizer.from_map(options.map, 'cpu')
        for kind, frames, is_there in kinds:
            cells = []
            for modality in MODALITIES:
                count = asked(localizer, frames, modality, is_there)
                total[modality].frames += count.frames
                total[modality].wrong += count.wrong
                cells.append(f'{100 * count.accepted / count.frames:.1f}, {100 * count.exact / count.frames:.1f}, {count.wrong}')
            print(f'| {kind} | {len(frames)} | {" | ".join(cells)} |', flush=True)
        for modality, count in total.items():
            print(f'{modality}: {count.wrong} of {count.frames} frames were accepted and wrong, {100 * count.wrong / count.frames:.3f} %')
    except DsacError as error:
        print(f'integrity: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
