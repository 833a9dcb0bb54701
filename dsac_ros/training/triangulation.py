"""Depth from RGB and poses alone: SIFT keypoints matched along epipolar lines between views and triangulated.

In minutes a reprojection loss cannot find out how far things are; a few hundred triangulated points a frame can tell it.
"""
from __future__ import annotations

import time
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.spatial import cKDTree
from tqdm import tqdm

from dsac_ros.geometry.camera import normalised
from dsac_ros.records import Frame
from dsac_ros.training.buffer import Targets

KEYPOINTS = 1000
PARTNERS = 8
MAX_ANGLE_DEG = 35.0  # between the optical axes of two views that are matched
EPIPOLAR_PX = 2.0
RATIO = 0.85  # of the distances to the best and second best descriptor in the epipolar band
MIN_VIEWS = 3
MIN_PARALLAX_DEG = 1.5
REACH_PX = 10.0  # a cell takes the depth of a keypoint this near


@dataclass(frozen=True)
class Keypoints:
    """Of one frame: pixels_M2, rays_M3 (x/z, y/z, 1), descriptors_MD with unit length; f: focal length [px]."""

    pixels_M2: np.ndarray
    rays_M3: np.ndarray
    descriptors_MD: torch.Tensor
    f: float


def triangulated_targets(frames: list[Frame], deadline: float, quiet: bool = False) -> Targets:
    """Triangulate keypoints of all frames (as far as `deadline`, time.monotonic(), allows; random order); a look-up of targets.

    A cell's scene coordinate lies on its own ray at the depth of the nearest triangulated keypoint within REACH_PX.
    """
    keypoints = [detect(frame) for frame in tqdm(frames, desc='keypoints', disable=quiet, unit='frame', dynamic_ncols=True)]
    poses = np.stack([frame.map_from_camera for frame in frames])
    order = np.random.default_rng(0).permutation(len(frames))
    found: dict[str, tuple[cKDTree, np.ndarray]] = {}
    for index in tqdm(order, desc='triangulate', disable=quiet, unit='frame', dynamic_ncols=True):
        if time.monotonic() > deadline:
            break
        pixels, depths = triangulate(index, keypoints, poses)
        if len(pixels):
            found[index] = cKDTree(pixels), depths

    def targets(index: int, frame: Frame, pixels: np.ndarray) -> np.ndarray:
        out = np.full((len(pixels), 3), np.nan)
        if index in found:
            tree, depths = found[index]
            distance, nearest = tree.query(pixels, distance_upper_bound=REACH_PX)
            near = np.isfinite(distance)
            rays = np.column_stack([normalised(frame.camera, pixels[near]), np.ones(near.sum())])
            points = rays * depths[nearest[near]][:, None]
            out[near] = points @ frame.map_from_camera[:3, :3].T + frame.map_from_camera[:3, 3]
        return out

    return targets


def detect(frame: Frame) -> Keypoints:
    """SIFT keypoints with RootSIFT descriptors (Arandjelovic & Zisserman 2012)."""
    grey = cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY)
    points, words = cv2.SIFT_create(KEYPOINTS, contrastThreshold=0.02).detectAndCompute(grey, None)
    if words is None:
        return Keypoints(np.zeros((0, 2)), np.zeros((0, 3)), torch.zeros(0, 128), frame.camera.fx)
    pixels = np.array([p.pt for p in points], np.float64)
    rays = np.column_stack([normalised(frame.camera, pixels), np.ones(len(pixels))])
    words = np.sqrt(words / np.maximum(words.sum(1, keepdims=True), 1e-9))
    return Keypoints(pixels, rays, torch.from_numpy(words.astype(np.float32)), frame.camera.fx)


def choose_partners(index: int, poses_F44: np.ndarray) -> np.ndarray:
    """Views that look the same way from other places, from near to far: evenly spaced in the order of their distance."""
    cosine = poses_F44[:, :3, 2] @ poses_F44[index, :3, 2]
    baseline = np.linalg.norm(poses_F44[:, :3, 3] - poses_F44[index, :3, 3], axis=1)
    candidates = np.flatnonzero((cosine > np.cos(np.radians(MAX_ANGLE_DEG))) & (baseline > 1e-3))
    nearest = candidates[np.argsort(baseline[candidates])][:60]
    return nearest[np.unique(np.linspace(0, len(nearest) - 1, PARTNERS).astype(int))] if len(nearest) else nearest


def triangulate(index: int, keypoints: list[Keypoints], poses_F44: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (M, 2) of the keypoints of one frame that MIN_VIEWS views agree on, and their depths (M,) [m]."""
    own = keypoints[index]
    partners = choose_partners(index, poses_F44)
    count = len(own.pixels_M2)
    if not count or not len(partners):
        return np.zeros((0, 2)), np.zeros(0)
    views = np.concatenate([[index], partners])
    directions = np.zeros((len(views), count, 3))
    seen = np.zeros((len(views), count), bool)
    for row, view in enumerate(views):
        other = keypoints[view]
        match = np.arange(count) if row == 0 else match_epipolar(own, other, np.linalg.inv(poses_F44[view]) @ poses_F44[index])
        seen[row] = match >= 0
        if len(other.rays_M3):
            rays = other.rays_M3[np.maximum(match, 0)] @ poses_F44[view][:3, :3].T
            directions[row] = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    centres = poses_F44[views, :3, 3]
    points = meet(directions, centres, seen)
    for _ in range(2):
        offset = points[None] - centres[:, None]
        along = (offset * directions).sum(-1)
        angle = np.linalg.norm(offset - along[..., None] * directions, axis=-1) / np.maximum(along, 1e-9)
        good = seen & (along > 0) & (angle * own.f < EPIPOLAR_PX)
        good[0] = True
        points = meet(directions, centres, good)
    cosines = np.where(good, (directions * directions[:1]).sum(-1), 1.0)
    parallax = np.degrees(np.arccos(np.clip(cosines, -1, 1))).max(0)
    inverse = np.linalg.inv(poses_F44[index])
    depth = points @ inverse[2, :3] + inverse[2, 3]
    keep = (good.sum(0) >= MIN_VIEWS) & (parallax > MIN_PARALLAX_DEG) & (depth > 0)
    return own.pixels_M2[keep], depth[keep]


def meet(directions_VM3: np.ndarray, centres_V3: np.ndarray, used_VM: np.ndarray) -> np.ndarray:
    """Points (M, 3) with the least squared distance to the used rays."""
    across = (np.eye(3) - directions_VM3[..., None] * directions_VM3[..., None, :]) * used_VM[..., None, None]
    normal = across.sum(0) + 1e-9 * np.eye(3)
    return np.linalg.solve(normal, np.einsum('vmij,vj->mi', across, centres_V3)[..., None])[..., 0]


def match_epipolar(first: Keypoints, second: Keypoints, second_from_first: np.ndarray) -> np.ndarray:
    """For each keypoint of the first view the index of its match in the second, -1 without one (mutual, ratio test in the band)."""
    none = np.full(len(first.pixels_M2), -1)
    if len(second.pixels_M2) < 2:
        return none
    x, y, z = second_from_first[:3, 3]
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ second_from_first[:3, :3]
    lines = torch.from_numpy((first.rays_M3 @ essential.T).astype(np.float32))
    lines = lines / lines[:, :2].norm(dim=1, keepdim=True).clamp(min=1e-12)
    band = (lines @ torch.from_numpy(second.rays_M3.astype(np.float32)).T).abs() * second.f < EPIPOLAR_PX
    square = (2 - 2 * first.descriptors_MD @ second.descriptors_MD.T).clamp(min=0)
    square = torch.where(band, square, torch.full_like(square, 4.0))
    best, match = square.topk(2, dim=1, largest=False)
    mutual = square.argmin(0)[match[:, 0]] == torch.arange(len(square))
    good = mutual & (best[:, 0] < RATIO ** 2 * best[:, 1]) & (best[:, 0] < 1.0)
    return np.where(good.numpy(), match[:, 0].numpy(), none)
