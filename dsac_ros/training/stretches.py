"""How wrong poses by landmarks are near the mapped views and far from them: what their covariance has to say.

Poses that are given for a recording drift, and neighbours drift alike: frames between mapped ones are turned as those are, and say less
than is wrong elsewhere. So every stretch is also localised by the landmarks that the others make, triangulated within each of these.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from dsac_ros.config import EstimatorOptions
from dsac_ros.landmarks.landmarks import Landmarks
from dsac_ros.landmarks.positioning import NEAR_PX, Positioning, look
from dsac_ros.progress import progress_bar
from dsac_ros.records import Frame
from dsac_ros.training.budget import Budget
from dsac_ros.training.calibration import MAX_FACTOR, MIN_FACTOR, MIN_FRAMES
from dsac_ros.training.merging import merge
from dsac_ros.training.triangulation import FramePoints

T = TypeVar('T')

STRETCHES = 5
LEAST_STRETCHES = 3  # that the others know well enough to say anything
FRAMES = 12  # of each, MIN_FRAMES in all: neighbours err alike, so that more of them tell little more
BETWEEN = 18  # held-out frames at the most: many more would drown what stretches say
GAP = 5  # frames before and after a stretch, much the same as those of it, that have no landmarks for it
FACTORS, SQUARES = (MIN_FACTOR, MAX_FACTOR), (1e-16, 1.0)  # what is looked among; squares of the shift
# Factors, growths and common shifts [rad] that the search for the likeliest begins with.
STARTS = ((1.0, 5.0, 2e-3), (0.1, 0.1, 1e-5), (10.0, 10.0, 1e-4), (2.0, 1e-3, 1e-3))


@dataclass(frozen=True)
class Sample:
    """A pose by landmarks: error_6 of camera_from_map as a left perturbation (rotation [rad], translation [m]), the hessian_66 that it came
    with, and its distance from the nearest view that these landmarks are from (landmarks.view_distance)."""

    error_6: np.ndarray
    hessian_66: np.ndarray
    distance: float


@dataclass(frozen=True)
class Trust:
    """factor: how far the inverse Hessian of poses by landmarks understates their covariance at mapped views; growth, common_shift [rad]:
    as in Landmarks."""

    factor: float
    growth: float
    common_shift: float


def stretch_of(count: int) -> np.ndarray:
    """The stretch (count,) of each frame of a recording."""
    return np.arange(count) * STRETCHES // max(1, count)


def trust_between_stretches(found: dict[int, FramePoints], frames: list[Frame], given: list[Frame], landmarks: Landmarks,
                            held_out: list[Frame], most: int, rng: np.random.Generator, device: torch.device, budget: Budget,
                            quiet: bool = False) -> Trust | None:
    """What makes the poses of all stretches, as far as the budget has time for them, and of the held-out frames likeliest; None where the
    stretches know too little of each other.

    Args:
        found: triangulated within the stretches, too (stretch_of), by the poses of `frames`. given: the same frames with the poses that the
            errors are counted from: adjusted ones agree with the other stretches already.
        landmarks: that all of them make, for the held-out frames between them; most: how many of them a map may have.
    """
    if budget.over():
        return None
    between = localised_by(landmarks, evenly(held_out, BETWEEN), device)
    stretches, stretch_F = [], stretch_of(len(frames))
    within = {index: points.within for index, points in found.items() if points.within is not None and len(points.within.pixels_M2)}
    for number in progress_bar('compare stretches', STRETCHES, quiet, 'stretch', iterable=range(STRETCHES)):
        part = [index for index in within if stretch_F[index] == number]
        samples = [] if budget.over() or not part else localised_by_others(part, within, frames, given, most, rng, device)
        if samples:
            stretches.append(samples)
    if len(stretches) < LEAST_STRETCHES or sum(map(len, stretches)) < MIN_FRAMES:
        return None
    return fitted([sample for samples in (*stretches, between) for sample in samples])


def localised_by_others(part: Sequence[int], within: dict[int, FramePoints], frames: list[Frame], given: list[Frame], most: int,
                        rng: np.random.Generator, device: torch.device) -> list[Sample]:
    """Some of the frames of a stretch by the landmarks that the frames outside of it make."""
    others = {index: points for index, points in within.items() if not part[0] - GAP <= index <= part[-1] + GAP}
    _, landmarks = merge(others, frames, most, rng)
    return [] if landmarks is None else localised_by(landmarks, [given[index] for index in evenly(part, FRAMES)], device)


def evenly(items: Sequence[T], most: int) -> Sequence[T]:
    """At most so many of them, evenly spread."""
    return items[::max(1, -(-len(items) // most))]


def localised_by(landmarks: Landmarks, frames: list[Frame], device: torch.device) -> list[Sample]:
    """Those that can be, looked for as narrowly around the reference pose as the localizer does around a pose by keypoints."""
    positioning, samples = Positioning(landmarks, device, EstimatorOptions(), 1.0), []
    for frame in frames:
        view = positioning.view(look(frame, device, with_depth=False))
        near = positioning.near(view, torch.from_numpy(np.linalg.inv(frame.map_from_camera)).to(device), NEAR_PX * view.pixel)
        if near.enough:
            off_44 = near.pose_44.cpu().numpy() @ frame.map_from_camera
            error_6 = np.concatenate([Rotation.from_matrix(off_44[:3, :3]).as_rotvec(), off_44[:3, 3]])
            samples.append(Sample(error_6, near.hessian_66.cpu().numpy(), near.distance.item()))
    return [sample for sample in samples
            if np.isfinite(sample.error_6).all() and np.isfinite(sample.hessian_66).all() and np.isfinite(sample.distance)]


def fitted(samples: list[Sample]) -> Trust:
    """The likeliest normal distribution of errors, of covariance (f + d g) H^-1 and d s^2 about each axis of the camera, d being the
    distance of a view from the nearest mapped one: f is of the images, the rest grows as the drift of poses does, a random walk. Which
    form suits held-out frames was tried: docs/mapping.md."""
    errors_N6 = np.stack([sample.error_6 for sample in samples])
    hessians_N66 = np.stack([sample.hessian_66 for sample in samples])
    inverse_N66 = np.linalg.inv(hessians_N66 + 1e-12 * np.trace(hessians_N66, axis1=1, axis2=2)[:, None, None] * np.eye(6))
    distance_N11 = np.array([sample.distance for sample in samples])[:, None, None]
    turn_66 = np.diag([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])

    def surprise(logarithms: np.ndarray) -> float:
        factor, growth, square = np.exp(logarithms)
        covariance_N66 = (factor + distance_N11 * growth) * inverse_N66 + distance_N11 * square * turn_66
        squares_N = (errors_N6 * np.linalg.solve(covariance_N66, errors_N6[..., None])[..., 0]).sum(1)
        return float((np.linalg.slogdet(covariance_N66)[1] + squares_N).mean())

    found = [minimize(surprise, np.log([factor, growth, shift ** 2]), method='Nelder-Mead', bounds=np.log([FACTORS, FACTORS, SQUARES]),
                      options={'maxiter': 1000}) for factor, growth, shift in STARTS]
    factor, growth, square = np.exp(min(found, key=lambda result: result.fun).x)
    return Trust(float(factor), float(growth), float(np.sqrt(square)))
