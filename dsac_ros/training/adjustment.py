"""Poses that the images of a recording agree on: the given ones, moved as little as that takes.

Bundle adjustment (Triggs et al. 2000): poses and points together, by the distances of keypoints from the points that several views agree
on, with weights that fall off, and every pose held near where it was given. Depth has no part in it: its scale is not that of the images
to the last percent, which would pull poses by centimetres (docs/mapping.md, "The given poses").
"""
from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from dsac_ros.evaluation.metrics import pose_error
from dsac_ros.geometry import se3
from dsac_ros.landmarks.keypoints import Keypoints
from dsac_ros.ransac.correspondences import across
from dsac_ros.records import Frame
from dsac_ros.training.budget import Budget
from dsac_ros.training.merging import ALONG, OUTLIER_PX, meeting_points, same_point, sightings
from dsac_ros.training.triangulation import FramePoints, map_from_cameras, triangulate_frames

TRIANGULATION_SHARE = 0.35  # of the time that is left, for all rounds, at the most
ROUNDS = 2  # of adjusting: by better poses more keypoints find their match
# Of the distances between keypoints and points: with poses that are right they fall by up to 0.12, since there is more to fit them with.
LEAST_GAIN = 0.2
LEAST_SIGHTINGS = 30  # of points that others see, too, for a view to be moved: fewer can be met by a wrong pose
FIXED = 1e6  # times as firmly as others are held views with fewer
TURN, SHIFT = math.radians(0.25), 0.01  # standard deviations of given poses, about and along each axis [rad, m]
STEPS = 8  # of Gauss and Newton
MOST_SIGHTINGS = 100  # a view, in the mean, of points at random: more take time and say little more
MIN_RANGE = 0.05  # metres along the ray, nearer than which a point is taken for that far


@dataclass(frozen=True)
class Adjustment:
    """map_from_camera_F44: the poses. movable_F: which of them could be moved. before_px, after_px: median distance of keypoints from their
    points, these being the best for the poses of before, and for these."""

    map_from_camera_F44: np.ndarray
    movable_F: np.ndarray
    before_px: float
    after_px: float

    @property
    def gain(self) -> float:
        """Share of the distance that is gone."""
        return 1 - self.after_px / max(self.before_px, 1e-9)


@dataclass(frozen=True)
class Tracks:
    """S sightings of K points: view_S, point_S are indices, across_S23 two directions across the ray_S3 of each (camera axes), focal_S
    [px]; points_K3 [m, map]: where they are by the given poses; along_K [m]: how far they may be elsewhere."""

    view_S: Tensor
    point_S: Tensor
    ray_S3: Tensor
    across_S23: Tensor
    focal_S: Tensor
    points_K3: Tensor
    along_K: Tensor


def triangulate_in_agreement(given: list[Frame], keypoints: list[Keypoints], use_depth: bool, adjust: bool, budget: Budget, seed: int,
                             quiet: bool = False, stretches_F: np.ndarray | None = None
                             ) -> tuple[list[Frame], dict[int, FramePoints], dict[str, float]]:
    """Triangulate the keypoints of all frames, and where the images disagree with the poses again, by poses that they agree on.

    Args:
        adjust: whether to, or only to triangulate. Others: as of triangulate_frames.

    Returns the frames with the poses that the points were found by, the points, and what the map says of these poses: median distance
    of keypoints from points by the given poses and by these [px], how many were moved, and the medians of how far these were; nothing where
    no view has enough points that others see, too, or there was no time.
    """
    part = budget.part(TRIANGULATION_SHARE * budget.left())

    def triangulated(posed: list[Frame]) -> dict[int, FramePoints]:
        return triangulate_frames(posed, keypoints, use_depth, part, quiet, stretches_F)

    frames, found, record = given, triangulated(given), {}
    needed = part.spent()
    for _ in range(ROUNDS if adjust else 0):
        if part.left() < needed:
            break
        moved = adjusted(found, frames, given, np.random.default_rng(seed), part)
        if moved is None:
            break
        record = record or {'given_px': round(moved.before_px, 3), 'px': round(moved.before_px, 3), 'moved': 0, 'moved_m': 0.0,
                            'turned_deg': 0.0}
        if not moved.gain >= LEAST_GAIN:
            break
        posed = [replace(frame, map_from_camera=pose_44) for frame, pose_44 in zip(given, moved.map_from_camera_F44)]
        again = triangulated(posed)
        if part.over():  # it took longer this time: some frames may be without points now
            break
        frames, found = posed, again
        off = [pose_error(pose_44, frame.map_from_camera) for pose_44, frame in zip(moved.map_from_camera_F44, given)]
        moved_m, turned_deg = np.median(np.array(off)[moved.movable_F], axis=0)
        record |= {'px': round(moved.after_px, 3), 'moved': int(moved.movable_F.sum()), 'moved_m': round(float(moved_m), 4),
                   'turned_deg': round(float(turned_deg), 3)}
    return frames, found, record


def adjusted(found: dict[int, FramePoints], frames: list[Frame], given: list[Frame], rng: np.random.Generator,
             budget: Budget) -> Adjustment | None:
    """Move the poses of all frames until the keypoints found in them agree.

    None where no view has enough points that others see, too, or the time is over.

    Args:
        given: the same frames with the poses that they are held near.
    """
    tracks = None if budget.over() else tracks_of(found, frames, rng)
    if tracks is None:
        return None
    movable_F = torch.bincount(tracks.view_S, minlength=len(frames)) >= LEAST_SIGHTINGS
    if not movable_F.any():
        return None
    views_F44, given_F44 = (se3.inverse(torch.from_numpy(map_from_cameras(some))) for some in (frames, given))
    points_K3 = tracks.points_K3
    for _ in range(STEPS):
        views_F44, points_K3 = step(tracks, views_F44, points_K3)
    before_px = median_px(tracks, views_F44, points_K3)
    for _ in range(STEPS):
        if budget.over():
            return None
        views_F44, points_K3 = step(tracks, views_F44, points_K3, given_F44, torch.where(movable_F, 1.0, FIXED))
    return Adjustment(se3.inverse(views_F44).numpy(), movable_F.numpy(), before_px, median_px(tracks, views_F44, points_K3))


def tracks_of(found: dict[int, FramePoints], frames: list[Frame], rng: np.random.Generator) -> Tracks | None:
    """The points that two views or more saw."""
    if not found:
        return None
    seen = sightings(found, frames)
    labels_S = same_point(seen)
    view_S = np.repeat(list(found), [len(points.pixels_M2) for points in found.values()])
    views_K = np.bincount(np.unique(np.stack([labels_S, view_S]), axis=1)[0])
    order = rng.permutation(np.flatnonzero(views_K > 1))
    chosen = order[np.cumsum(np.bincount(labels_S)[order]) <= MOST_SIGHTINGS * len(frames)]
    if not len(chosen):
        return None
    number_K = np.full(len(views_K), -1)
    number_K[chosen] = np.arange(len(chosen))
    kept = np.flatnonzero(number_K[labels_S] >= 0)
    points_K3 = meeting_points(seen, labels_S)[chosen]
    rotations_S33 = map_from_cameras(frames)[view_S[kept], :3, :3]
    ray_S3 = torch.from_numpy((seen.rays_S3[kept, None] @ rotations_S33)[:, 0])
    point_S = number_K[labels_S[kept]]
    distance_S = np.linalg.norm(points_K3[point_S] - seen.centres_S3[kept], axis=1)
    along_K = np.full(len(chosen), np.inf)
    np.minimum.at(along_K, point_S, ALONG * distance_S)
    return Tracks(*(torch.from_numpy(values) for values in (view_S[kept], point_S)), ray_S3, torch.stack(across(ray_S3), 1),
                  *(torch.from_numpy(values) for values in (seen.focal_S[kept], points_K3, along_K)))


def step(tracks: Tracks, views_F44: Tensor, points_K3: Tensor, given_F44: Tensor | None = None,
         firmness_F: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One step of Gauss and Newton: of points alone, or of poses, too, which are held near given_F44, each with its firmness_F."""
    error_S2, by_place_S23, place_S3 = errors(tracks, views_F44, points_K3)
    weight_S = 1 / (1 + error_S2.square().sum(1) / OUTLIER_PX ** 2)
    by_point_S23 = by_place_S23 @ views_F44[tracks.view_S, :3, :3]
    weighted_S32 = (weight_S[:, None, None] * by_point_S23).mT
    hold_K = tracks.along_K ** -2
    hessian_K33 = summed(weighted_S32 @ by_point_S23, tracks.point_S, len(points_K3)) + hold_K[:, None, None] * torch.eye(3).double()
    gradient_K3 = (summed((weighted_S32 @ error_S2[..., None])[..., 0], tracks.point_S, len(points_K3))
                   + hold_K[:, None] * (points_K3 - tracks.points_K3))
    inverse_K33 = torch.linalg.inv(hessian_K33)
    if given_F44 is None:
        return views_F44, points_K3 - (inverse_K33 @ gradient_K3[..., None])[..., 0]
    by_view_S26 = torch.cat([-by_place_S23 @ se3.skew(place_S3), by_place_S23], -1)
    weighted_S62, count = (weight_S[:, None, None] * by_view_S26).mT, len(views_F44)
    hold_F6 = firmness_F[:, None] * torch.tensor([TURN] * 3 + [SHIFT] * 3).double() ** -2
    hessian_F66 = summed(weighted_S62 @ by_view_S26, tracks.view_S, count) + hold_F6.diag_embed()
    gradient_F6 = (summed((weighted_S62 @ error_S2[..., None])[..., 0], tracks.view_S, count)
                   + hold_F6 * se3.difference(views_F44, given_F44))
    both_S63 = weighted_S62 @ by_point_S23

    def eliminated(values_K3: Tensor) -> Tensor:
        return summed((both_S63 @ (inverse_K33 @ values_K3[..., None])[tracks.point_S])[..., 0], tracks.view_S, count)

    def to_points(values_F6: Tensor) -> Tensor:
        return summed((both_S63.mT @ values_F6[tracks.view_S, :, None])[..., 0], tracks.point_S, len(points_K3))

    def reduced(values: np.ndarray) -> np.ndarray:
        values_F6 = torch.from_numpy(values).view(-1, 6)
        return ((hessian_F66 @ values_F6[..., None])[..., 0] - eliminated(to_points(values_F6))).flatten().numpy()

    def preconditioned(values: np.ndarray) -> np.ndarray:
        return torch.linalg.solve(hessian_F66, torch.from_numpy(values).view(-1, 6, 1)).flatten().numpy()

    shape = (6 * count, 6 * count)
    right_F6 = eliminated(gradient_K3) - gradient_F6
    solved, _ = cg(LinearOperator(shape, reduced, dtype=float), right_F6.flatten().numpy(), rtol=1e-3, maxiter=200,
                   M=LinearOperator(shape, preconditioned, dtype=float))
    move_F6 = torch.from_numpy(solved).view(-1, 6)
    move_K3 = -(inverse_K33 @ (gradient_K3 + to_points(move_F6))[..., None])[..., 0]
    return se3.retract(views_F44, move_F6), points_K3 + move_K3


def errors(tracks: Tracks, views_F44: Tensor, points_K3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How far each point is from its ray [px] (S, 2), the derivative of that by the place of the point (S, 2, 3), and that place (S, 3) in
    the camera's axes."""
    views_S44 = views_F44[tracks.view_S]
    place_S3 = (views_S44[:, :3, :3] @ points_K3[tracks.point_S, :, None])[..., 0] + views_S44[:, :3, 3]
    along_S11 = (place_S3 * tracks.ray_S3).sum(1).clamp(min=MIN_RANGE)[:, None, None]
    off_S21 = tracks.across_S23 @ place_S3[..., None] / along_S11
    focal_S11 = tracks.focal_S[:, None, None]
    return (focal_S11 * off_S21)[..., 0], focal_S11 * (tracks.across_S23 - off_S21 * tracks.ray_S3[:, None]) / along_S11, place_S3


def median_px(tracks: Tracks, views_F44: Tensor, points_K3: Tensor) -> float:
    return errors(tracks, views_F44, points_K3)[0].norm(dim=1).median().item()


def summed(values_S: Tensor, index_S: Tensor, count: int) -> Tensor:
    """Of all values with the same index, (count, ...)."""
    return values_S.new_zeros(count, *values_S.shape[1:]).index_add_(0, index_S, values_S)
