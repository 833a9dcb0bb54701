"""Keypoints of posed frames -> points of the map, matched along epipolar lines and triangulated, with depth where there is any.

They become the landmarks of a map (merging), and without depth the targets of its head: in minutes a reprojection loss cannot find out
how far things are, a few hundred triangulated points a frame can tell it.
"""
from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial import cKDTree

from dsac_ros.geometry.camera import essential_matrix, homogeneous, normalised
from dsac_ros.landmarks.keypoints import MAPPING, Keypoints, detect
from dsac_ros.progress import progress_bar
from dsac_ros.records import Frame
from dsac_ros.training.budget import Budget
from dsac_ros.training.buffer import Targets

PARTNERS = 16
MAX_ANGLE_DEG = 35.0  # between the optical axes of two views that are matched
EPIPOLAR_PX = 2.0
RATIO = 0.85  # of the distances to the best and second best descriptor in the epipolar band
MIN_VIEWS = 3  # depth counts as one
MIN_PARALLAX_DEG = 3.0  # where depth does not say how far a point is
DEPTH_DEVIATION_M = 0.02
MAX_DEPTH_STEP = 0.05  # of the depth, around a keypoint: at an edge its depth is a guess
REACH_PX = 10.0  # a cell takes the depth of a keypoint this near


@dataclass(frozen=True)
class FramePoints:
    """Of one frame: pixels_M2 and depths_M [m] of the keypoints that views agree on, their points_M3 [m, map] and descriptors_MD. within:
    the same as the views of its own stretch alone see it, where that was asked for."""

    pixels_M2: np.ndarray
    depths_M: np.ndarray
    points_M3: np.ndarray
    descriptors_MD: np.ndarray
    within: FramePoints | None = None


def keypoints_of(frames: list[Frame], quiet: bool = False) -> list[Keypoints]:
    """Of all frames, whatever time it takes: a map without landmarks answers little."""
    # Threads suffice: OpenCV and the matrix products release the interpreter.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found_in = pool.map(lambda frame: detect(frame.image, frame.camera, MAPPING), frames)
        return list(progress_bar('keypoints', len(frames), quiet, iterable=found_in))


def triangulate_frames(frames: list[Frame], keypoints: list[Keypoints], use_depth: bool, budget: Budget, quiet: bool = False,
                       stretches_F: np.ndarray | None = None) -> dict[int, FramePoints]:
    """Triangulate the keypoints of all frames, in random order as far as the budget allows.

    Args:
        stretches_F: the stretch of the recording that each frame is of, to triangulate within these, too.
    """
    poses = map_from_cameras(frames)
    found: dict[int, FramePoints] = {}

    def solve(index: int) -> None:
        if not budget.over():
            points = triangulate(index, keypoints, poses, frames[index] if use_depth else None, frames[index].camera.fx, stretches_F)
            if len(points.pixels_M2):
                found[index] = points

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        order = np.random.default_rng(0).permutation(len(frames)).tolist()
        list(progress_bar('triangulate', len(frames), quiet, iterable=pool.map(solve, order)))
    return dict(sorted(found.items()))  # not in the order in which threads were done: the same seed gives the same landmarks


def map_from_cameras(frames: list[Frame]) -> np.ndarray:
    """Their poses (F, 4, 4)."""
    return np.stack([frame.map_from_camera for frame in frames])


def triangulated_targets(found: dict[int, FramePoints]) -> Targets:
    """A look-up of scene coordinates: on the cell's own ray at the depth of the nearest triangulated keypoint within REACH_PX."""
    trees = {index: cKDTree(points.pixels_M2) for index, points in found.items()}

    def targets(index: int, frame: Frame, pixels: np.ndarray) -> np.ndarray:
        out = np.full((len(pixels), 3), np.nan)
        if index in trees:
            distance, nearest = trees[index].query(pixels, distance_upper_bound=REACH_PX)
            near = np.isfinite(distance)
            points = homogeneous(normalised(frame.camera, pixels[near])) * found[index].depths_M[nearest[near]][:, None]
            out[near] = points @ frame.map_from_camera[:3, :3].T + frame.map_from_camera[:3, 3]
        return out

    return targets


def choose_partners(index: int, poses_F44: np.ndarray) -> np.ndarray:
    """Views that look the same way from other places, from near to far: evenly spaced in the order of their distance."""
    cosine = poses_F44[:, :3, 2] @ poses_F44[index, :3, 2]
    baseline = np.linalg.norm(poses_F44[:, :3, 3] - poses_F44[index, :3, 3], axis=1)
    candidates = np.flatnonzero((cosine > np.cos(np.radians(MAX_ANGLE_DEG))) & (baseline > 1e-3))
    nearest = candidates[np.argsort(baseline[candidates])][:60]
    return nearest[np.unique(np.linspace(0, len(nearest) - 1, PARTNERS).astype(int))] if len(nearest) else nearest


def triangulate(index: int, keypoints: list[Keypoints], poses_F44: np.ndarray, measured: Frame | None, focal_px: float,
                stretches_F: np.ndarray | None = None) -> FramePoints:
    """The keypoints of one frame that MIN_VIEWS views agree on.

    Args:
        measured: the frame itself where its depth is to be used, beside the rays; then little parallax is enough.
        focal_px: of the source image, to turn angles into pixels.
        stretches_F: as in triangulate_frames.
    """
    own, pose = keypoints[index], poses_F44[index]
    count = len(own.pixels_M2)
    depth = keypoint_depths(measured, own.pixels_M2) if measured is not None else np.full(count, np.nan)
    views = np.concatenate([[index], choose_partners(index, poses_F44)])
    directions = np.zeros((len(views), count, 3))
    seen = np.zeros((len(views), count), bool)
    for row, view in enumerate(views):
        other = keypoints[view]
        match = np.arange(count) if row == 0 else match_epipolar(own, other, np.linalg.inv(poses_F44[view]) @ pose, focal_px)
        seen[row] = match >= 0
        if len(other.rays_M2):
            rays = homogeneous(other.rays_M2)[np.maximum(match, 0)] @ poses_F44[view][:3, :3].T
            directions[row] = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    found = agreed(own, pose, directions, poses_F44[views, :3, 3], seen, depth, focal_px)
    if stretches_F is None:
        return found
    same = stretches_F[views] == stretches_F[index]
    return replace(found, within=agreed(own, pose, directions[same], poses_F44[views[same], :3, 3], seen[same], depth, focal_px))


def agreed(own: Keypoints, pose: np.ndarray, directions: np.ndarray, centres: np.ndarray, seen: np.ndarray, depth: np.ndarray,
           focal_px: float) -> FramePoints:
    """The keypoints of a frame that MIN_VIEWS views agree on, the first of which is the frame's own.

    Args:
        directions: of the rays (V, M, 3) on which V views see M keypoints, those that they do not see being anything. centres: (V, 3).
        seen: (V, M). depth: measured (M,), NaN where it is unknown.
    """
    count = len(own.pixels_M2)
    along_own = homogeneous(own.rays_M2) @ pose[:3, :3].T
    prior = np.where(np.isfinite(depth)[:, None], centres[0] + along_own * np.nan_to_num(depth)[:, None], np.nan)
    points = meet(directions, centres, seen, prior, focal_px)
    good = seen
    for _ in range(2):
        offset = points[None] - centres[:, None]
        ahead = (offset * directions).sum(-1)
        angle = np.linalg.norm(offset - ahead[..., None] * directions, axis=-1) / np.maximum(ahead, 1e-9)
        good = seen & (ahead > 0) & (angle * focal_px < EPIPOLAR_PX)
        good[0] = True
        points = meet(directions, centres, good, prior, focal_px)
    cosines = np.where(good, (directions * directions[:1]).sum(-1), 1.0)
    parallax = np.degrees(np.arccos(np.clip(cosines, -1, 1))).max(0) if count else np.zeros(0)
    found = ((points - centres[0]) @ pose[:3, :3])[:, 2]
    known = np.isfinite(depth)
    told = np.where(known, np.abs(found - np.nan_to_num(depth)) < 0.1 * found, parallax > MIN_PARALLAX_DEG)
    keep = (good.sum(0) + known >= MIN_VIEWS) & told & (found > 0)
    return FramePoints(own.pixels_M2[keep], found[keep], points[keep], own.descriptors_MD[keep])


def keypoint_depths(frame: Frame, pixels_M2: np.ndarray) -> np.ndarray:
    """Median depth (M,) of the 5 x 5 pixels around each keypoint; NaN at depth edges and where there is none."""
    x = np.clip(np.rint(pixels_M2[:, 0]).astype(int), 2, frame.camera.width - 3)
    y = np.clip(np.rint(pixels_M2[:, 1]).astype(int), 2, frame.camera.height - 3)
    window = frame.depth[y[:, None, None] + np.arange(-2, 3)[:, None], x[:, None, None] + np.arange(-2, 3)].reshape(len(x), 25)
    low, high = window.min(1), window.max(1)
    return np.where((low > 0) & (high < (1 + MAX_DEPTH_STEP) * low), np.median(window, 1), np.nan)


def meet(directions_VM3: np.ndarray, centres_V3: np.ndarray, used_VM: np.ndarray, prior_M3: np.ndarray, focal_px: float) -> np.ndarray:
    """Points (M, 3) closest to the used rays (one pixel of noise each) and to where the first view's depth puts them (NaN: nowhere)."""
    known = np.isfinite(prior_M3).all(1)
    distance = np.where(known, np.linalg.norm(np.nan_to_num(prior_M3) - centres_V3[0], axis=1), 1.0)
    across = np.eye(3) - directions_VM3[..., None] * directions_VM3[..., None, :]
    across = across * (used_VM * (focal_px / distance) ** 2)[..., None, None]
    along = directions_VM3[0, :, :, None] * directions_VM3[0, :, None, :] * (known / DEPTH_DEVIATION_M ** 2)[:, None, None]
    normal = across.sum(0) + along + 1e-9 * np.eye(3)
    right = np.einsum('vmij,vj->mi', across, centres_V3) + np.einsum('mij,mj->mi', along, np.nan_to_num(prior_M3))
    return np.linalg.solve(normal, right[..., None])[..., 0]


def match_epipolar(first: Keypoints, second: Keypoints, second_from_first: np.ndarray, focal_px: float) -> np.ndarray:
    """For each keypoint of the first view the index of its match in the second, -1 without one (mutual, ratio test in the band)."""
    none = np.full(len(first.pixels_M2), -1)
    if not len(first.pixels_M2) or len(second.pixels_M2) < 2:
        return none
    lines = torch.from_numpy((homogeneous(first.rays_M2) @ essential_matrix(second_from_first).T).astype(np.float32))
    lines = lines / lines[:, :2].norm(dim=1, keepdim=True).clamp(min=1e-12)
    band = (lines @ torch.from_numpy(homogeneous(second.rays_M2).astype(np.float32)).T).abs() * focal_px < EPIPOLAR_PX
    square = (2 - 2 * torch.from_numpy(first.descriptors_MD) @ torch.from_numpy(second.descriptors_MD).T).clamp(min=0)
    square = torch.where(band, square, torch.full_like(square, 4.0))
    best, match = square.topk(2, dim=1, largest=False)
    mutual = square.argmin(0)[match[:, 0]] == torch.arange(len(square))
    good = mutual & (best[:, 0] < RATIO ** 2 * best[:, 1]) & (best[:, 0] < 1.0)
    return np.where(good.numpy(), match[:, 0].numpy(), none)
