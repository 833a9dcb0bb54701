"""How wrong poses by landmarks are in a stretch of the recording that the map knows nothing of: what their covariance has to say.

Poses that are given for a recording disagree between its parts, and neighbours err alike: frames between mapped ones are turned as those
are, and say less than is wrong elsewhere. So every stretch is localised by the landmarks that the others make.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from dsac_ros.config import EstimatorOptions
from dsac_ros.landmarks.positioning import NEAR_PX, Positioning, look
from dsac_ros.records import Frame
from dsac_ros.training.budget import Budget
from dsac_ros.training.calibration import MAX_FACTOR, MIN_FACTOR, MIN_FRAMES
from dsac_ros.training.merging import merge
from dsac_ros.training.triangulation import FramePoints

STRETCHES = 5
LEAST_STRETCHES = 3  # that the others know well enough to say anything
FRAMES = 12  # of each, MIN_FRAMES in all: neighbours err alike, so that more of them tell little more
GAP = 5  # frames before and after a stretch that say nothing of it, being much the same
FACTORS, SQUARES = (MIN_FACTOR, MAX_FACTOR), (1e-16, 1.0)  # what is looked among; squares of the shift
STARTS = ((2.0, 1e-3), (0.1, 1e-5), (10.0, 1e-4))  # factors and common shifts [rad] that the search for the likeliest begins with


@dataclass(frozen=True)
class Sample:
    """A pose by landmarks of other stretches: error_6 of camera_from_map as a left perturbation (rotation [rad], translation [m]), and the
    hessian_66 that it came with."""

    error_6: np.ndarray
    hessian_66: np.ndarray


@dataclass(frozen=True)
class Trust:
    """factor: how far the inverse Hessian of poses by landmarks understates their covariance; common_shift [rad]: as in Landmarks."""

    factor: float
    common_shift: float


def trust_between_stretches(found: dict[int, FramePoints], frames: list[Frame], most: int, rng: np.random.Generator,
                            device: torch.device, budget: Budget) -> Trust | None:
    """What makes the poses of all stretches likeliest, of those that the budget has time for; None where others know too little of them.

    Args:
        found: of frames in the order of the recording, as triangulated: also with views of other stretches, which makes a stretch look
            better known than it would be by the others alone. most: landmarks of a map.
    """
    stretches = []
    for part in np.array_split(sorted(found), STRETCHES):
        samples = [] if budget.over() or not len(part) else localised_by_others(part, found, frames, most, rng, device)
        if samples:
            stretches.append(samples)
    return fitted(stretches)


def localised_by_others(part: Sequence[int], found: dict[int, FramePoints], frames: list[Frame], most: int, rng: np.random.Generator,
                        device: torch.device) -> list[Sample]:
    """Some of the frames of a stretch by the landmarks that the frames outside of it make, looked for as narrowly around the reference pose
    as the localizer does around a pose by keypoints."""
    others = {index: points for index, points in found.items() if not part[0] - GAP <= index <= part[-1] + GAP}
    _, landmarks = merge(others, frames, most, rng)
    if landmarks is None:
        return []
    positioning, samples = Positioning(landmarks, device, EstimatorOptions(), 1.0), []
    for index in part[::-(-len(part) // FRAMES)]:
        truth_44 = frames[index].map_from_camera
        view = positioning.view(look(frames[index], device, with_depth=False))
        near = positioning.near(view, torch.from_numpy(np.linalg.inv(truth_44)).to(device), NEAR_PX * view.pixel)
        if near.enough:
            off_44 = near.pose_44.cpu().numpy() @ truth_44
            error_6 = np.concatenate([Rotation.from_matrix(off_44[:3, :3]).as_rotvec(), off_44[:3, 3]])
            samples.append(Sample(error_6, near.hessian_66.cpu().numpy()))
    return [sample for sample in samples if np.isfinite(sample.error_6).all() and np.isfinite(sample.hessian_66).all()]


def fitted(stretches: list[list[Sample]]) -> Trust | None:
    """The factor f and the shift s whose normal distribution of errors, of covariance f H^-1 and s^2 about each axis of the camera, is
    likeliest; s^2 made larger, since so few stretches tell a variance poorly: by n / (n - 2) of n, the mean of F with one degree of freedom
    each, which suits held-out frames (docs/mapping.md). None where there are too few."""
    samples = [sample for stretch in stretches for sample in stretch]
    if len(stretches) < LEAST_STRETCHES or len(samples) < MIN_FRAMES:
        return None
    errors_N6 = np.stack([sample.error_6 for sample in samples])
    hessians_N66 = np.stack([sample.hessian_66 for sample in samples])
    inverse_N66 = np.linalg.inv(hessians_N66 + 1e-12 * np.trace(hessians_N66, axis1=1, axis2=2)[:, None, None] * np.eye(6))
    turn_66 = np.diag([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])

    def surprise(logarithms: np.ndarray) -> float:
        factor, square = np.exp(logarithms)
        covariance_N66 = factor * inverse_N66 + square * turn_66
        squares_N = (errors_N6 * np.linalg.solve(covariance_N66, errors_N6[..., None])[..., 0]).sum(1)
        return float((np.linalg.slogdet(covariance_N66)[1] + squares_N).mean())

    found = [minimize(surprise, np.log([factor, shift ** 2]), method='Nelder-Mead', bounds=np.log([FACTORS, SQUARES]))
             for factor, shift in STARTS]
    factor, square = np.exp(min(found, key=lambda result: result.fun).x)
    return Trust(float(factor), float(np.sqrt(square * len(stretches) / (len(stretches) - 2))))
