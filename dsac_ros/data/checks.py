"""A few frames in, a DataError out where their poses cannot be what they are said to be: inverted, or in another unit than depth.

Two tests: depth, warped from one view into another, has to meet the depth measured there; without depth, matched features have to lie on
the epipolar lines. Each is done with the poses as given and with every pose inverted; the right way round wins by far.
"""
from __future__ import annotations

from typing import Callable, NamedTuple, Sequence

import cv2
import numpy as np

from dsac_ros.data.transforms import rigid_inverse
from dsac_ros.errors import DataError
from dsac_ros.geometry.camera import essential_matrix, homogeneous, normalised, pixels_of
from dsac_ros.records import Frame

SCALES = (0.001, 1000.0, 0.2, 5.0, 0.1, 10.0)  # mm and m taken for each other; TUM's 1/5000; tenths of a mm
DEPTH_TOLERANCE = 0.03  # share of the depth: sensor noise, undistorted warping and pose errors of a centimetre stay below
MATCH_TOLERANCE = 0.006  # on the normalised image plane: 3 px at f = 500
FARTHEST_M = 20e3  # coordinates and landmarks are float32: 2 mm there, half a metre at a UTM northing
GRID = 12  # pixels between the points that are warped
Agreement = Callable[[Frame, Frame, np.ndarray, float], float]


class Consistency(NamedTuple):
    """Shares (0 to 1) of points that agree over `pairs` of views; `inverted` with every pose inverted. method: depth, epipolar or none."""

    given: float
    inverted: float
    pairs: int
    method: str


def check_consistency(frames: Sequence[Frame], max_pairs: int = 8, name: str = 'the data') -> Consistency:
    """Compare views that look at the same things from different places.

    Args:
        frames: in stamp order, ten to thirty of them, spread over a few seconds; those without a pose are passed over.
        name: of the data, for the message.

    Returns what was found; `pairs` is 0 where the camera never moved enough to tell. Raises DataError where inverted or rescaled poses fit
    clearly better than the given ones, and where they are too far from the origin for a map.
    """
    posed = [frame for frame in frames if frame.map_from_camera is not None]
    farthest = max((float(np.linalg.norm(frame.map_from_camera[:3, 3])) for frame in posed), default=0.0)
    if farthest > FARTHEST_M:
        raise DataError(f'{name}: reference poses lie up to {farthest / 1e3:.0f} km from the origin of their frame, where float32 has no '
                        f'millimetres left; give them in a local frame, within {FARTHEST_M / 1e3:.0f} km of its origin')
    pairs = _moving_pairs(posed, max_pairs)
    if not pairs:
        return Consistency(0.0, 0.0, 0, 'none')
    if all(frame.depth is not None for pair in pairs for frame in pair):
        method, agreement = 'depth', _depth_agreement
    else:
        method, agreement = 'epipolar', _epipolar_agreement
    given = _over(pairs, agreement, False)
    inverted = _over(pairs, agreement, True)
    rescaled, scale = max((_over(pairs, agreement, False, scale), scale) for scale in SCALES) if method == 'depth' else (0.0, 1.0)
    if _clearly(rescaled, given) and rescaled > inverted:
        raise DataError(f'{name}: depth and reference poses have different units: {given:.0%} of the points agree between views, '
                        f'{rescaled:.0%} with depth multiplied by {scale:g}. Both have to be in metres (16UC1 depth in millimetres)')
    if _clearly(inverted, given):
        raise DataError(f'{name}: the reference poses are inverted: {given:.0%} of the points agree between views as they are, '
                        f'{inverted:.0%} with every pose inverted. Expected map_from_camera (where the camera is in the map); invert them, '
                        'or look at the frames of the TF')
    return Consistency(given, inverted, len(pairs), method)


def _clearly(other: float, given: float) -> bool:
    # At small motion even wrong poses agree in part; then what is left over has to shrink instead.
    return other > 0.3 and other > given + 0.15 and (other > 1.5 * given or 1 - other < 0.6 * (1 - given))


def _over(pairs: list[tuple[Frame, Frame]], agreement: Agreement, inverted: bool, scale: float = 1.0) -> float:
    """Mean agreement of the pairs with their relative transforms."""
    shares = []
    for first, second in pairs:
        poses = [frame.map_from_camera if not inverted else rigid_inverse(frame.map_from_camera) for frame in (first, second)]
        shares.append(agreement(first, second, rigid_inverse(poses[1]) @ poses[0], scale))
    return float(np.mean(shares))


def _moving_pairs(frames: list[Frame], max_pairs: int) -> list[tuple[Frame, Frame]]:
    """Pairs far enough apart to tell (5 deg, or 8 cm as seen at depth) and near enough to overlap (30 deg)."""
    pairs = []
    for at, first in enumerate(frames):
        for second in frames[at + 1:]:
            second_from_first = rigid_inverse(second.map_from_camera) @ first.map_from_camera
            cosine = (np.trace(second_from_first[:3, :3]) - 1) / 2
            angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
            shift = np.linalg.norm(second_from_first[:3, 3])
            if angle > 30:
                break
            if angle > 5 or shift > 0.08:
                pairs.append((first, second))
                break
    return pairs[::max(1, len(pairs) // max_pairs)][:max_pairs]


def _depth_agreement(first: Frame, second: Frame, second_from_first: np.ndarray, scale: float) -> float:
    """Share of the first view's points that are seen at their place in the second; leaving its image is no agreement."""
    rows, columns = np.mgrid[GRID // 2:first.depth.shape[0]:GRID, GRID // 2:first.depth.shape[1]:GRID].reshape(2, -1)
    z = first.depth[rows, columns] * scale
    rows, columns, z = rows[z > 0], columns[z > 0], z[z > 0]
    if z.size < 50:
        return 0.0
    rays = np.column_stack([normalised(first.camera, np.column_stack([columns, rows]).astype(np.float64)), np.ones(z.size)])
    points = rays * z[:, None] @ second_from_first[:3, :3].T + second_from_first[:3, 3]
    ahead = points[:, 2] > 0.05
    if not ahead.any():
        return 0.0
    pixels = np.full((z.size, 2), -1.0)
    pixels[ahead] = pixels_of(second.camera, points[ahead])
    u, v = np.rint(pixels).astype(np.int64).T
    inside = ahead & (u >= 0) & (v >= 0) & (u < second.camera.width) & (v < second.camera.height)
    measured = np.zeros(z.size)
    measured[inside] = second.depth[v[inside], u[inside]] * scale
    # A hole in the second depth map says nothing either way.
    tested = ~inside | (measured > 0)
    agree = inside & (measured > 0) & (np.abs(measured - points[:, 2]) < DEPTH_TOLERANCE * np.maximum(measured, 0.3))
    return float(agree.sum() / max(1, tested.sum()))


def _epipolar_agreement(first: Frame, second: Frame, second_from_first: np.ndarray, scale: float) -> float:
    """Share of ORB matches within MATCH_TOLERANCE of their epipolar lines. (scale has no effect on it.)"""
    orb = cv2.ORB_create(800)
    (points_a, words_a), (points_b, words_b) = (orb.detectAndCompute(cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY), None)
                                                for frame in (first, second))
    if words_a is None or words_b is None:
        return 0.0
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(words_a, words_b)
    matches = [match for match in matches if match.distance < 50]
    if len(matches) < 20:
        return 0.0
    a = normalised(first.camera, np.array([points_a[match.queryIdx].pt for match in matches]))
    b = normalised(second.camera, np.array([points_b[match.trainIdx].pt for match in matches]))
    a, b, essential = homogeneous(a), homogeneous(b), essential_matrix(second_from_first)
    lines_b, lines_a = a @ essential.T, b @ essential
    error = np.abs((lines_b * b).sum(1))
    norms = [np.hypot(lines[:, 0], lines[:, 1]) + 1e-12 for lines in (lines_a, lines_b)]
    return float((np.maximum(error / norms[0], error / norms[1]) < MATCH_TOLERANCE).mean())
