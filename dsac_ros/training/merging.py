"""Sightings of one point in many frames -> one point of the map, in a better place, with a descriptor for each way that it looks.

Every frame triangulates its own keypoints, so that a corner is found once for each frame that saw it, always a little elsewhere. Kept as
they are, sightings of a few well-seen corners fill the map and are most of what a keypoint is compared with.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial import cKDTree

from dsac_ros.geometry.camera import homogeneous, normalised
from dsac_ros.landmarks.landmarks import Landmarks
from dsac_ros.records import Frame
from dsac_ros.training.triangulation import FramePoints

REACH = 0.012  # of the distance: how far apart the places of two sightings of one point may be
ALIKE = 0.75  # least cosine of their descriptors
SAME_LOOK = 0.85  # the same for sightings that share a descriptor,
SAME_LOOK_DEG = 25.0  # seen from directions this close
SAME_LOOK_LOG_RATIO = 0.35  # and distances this alike
ALONG = 0.03  # noise of a sighting along its ray, of the distance
OUTLIER_PX = 1.5  # distance from a ray at which its weight is halved
ITERATIONS = 3
TYPICAL_SHARE = 0.1  # of the sightings that most keypoints have: a point with fewer is likelier a wrong match than a rare view


@dataclass(frozen=True)
class Sightings:
    """Of S keypoints: points_S3 [m, map], centres_S3 of their cameras, unit rays_S3 (map axes), descriptors_SD, focal_S [px]."""

    points_S3: np.ndarray
    centres_S3: np.ndarray
    rays_S3: np.ndarray
    descriptors_SD: np.ndarray
    focal_S: np.ndarray


def sightings(found: dict[int, FramePoints], frames: list[Frame]) -> Sightings:
    """The points of all frames, in the order of `found`."""
    centres, rays, focal = [], [], []
    for index, points in found.items():
        frame, count = frames[index], len(points.pixels_M2)
        directions = homogeneous(normalised(frame.camera, points.pixels_M2)) @ frame.map_from_camera[:3, :3].T
        centres.append(np.repeat(frame.map_from_camera[None, :3, 3], count, 0))
        rays.append(directions / np.linalg.norm(directions, axis=1, keepdims=True))
        focal.append(np.full(count, frame.camera.fx))
    return Sightings(np.concatenate([p.points_M3 for p in found.values()]), np.concatenate(centres), np.concatenate(rays),
                     np.concatenate([p.descriptors_MD for p in found.values()]), np.concatenate(focal))


def merge(found: dict[int, FramePoints], frames: list[Frame], most: int,
          rng: np.random.Generator) -> tuple[dict[int, FramePoints], Landmarks | None]:
    """The same keypoints in the places that all their sightings agree on, and at most `most` landmarks, None where there are none."""
    if not found:
        return found, None
    seen = sightings(found, frames)
    labels_S = same_point(seen)
    points_K3 = meeting_points(seen, labels_S)
    moved_S3 = points_K3[labels_S]
    views_S3 = seen.centres_S3 - moved_S3
    counts_K = np.bincount(labels_S)
    looks_S = same_look(seen.descriptors_SD, views_S3, labels_S)
    point_of_L = np.zeros(looks_S.max() + 1, int)
    point_of_L[looks_S] = labels_S
    often_L = counts_K[point_of_L] >= TYPICAL_SHARE * np.median(counts_K[labels_S])
    kept = np.sort(rng.permutation(np.flatnonzero(often_L))[:most])
    words_LD = sums(seen.descriptors_SD, looks_S)[kept]
    words_LD /= np.linalg.norm(words_LD, axis=1, keepdims=True)
    views_L3 = (sums(views_S3, looks_S) / np.bincount(looks_S)[:, None])[kept]
    if not len(kept):
        return replaced(found, frames, moved_S3), None
    cameras_F34 = np.stack([frames[index].map_from_camera[:3] for index in found])
    landmarks = Landmarks.compressed(*(torch.from_numpy(a).float() for a in (points_K3[point_of_L[kept]], views_L3, words_LD, cameras_F34)))
    return replaced(found, frames, moved_S3), landmarks


def same_point(seen: Sightings) -> np.ndarray:
    """A label (S,) for each sighting: those of one point are near to it and look alike. Greedy, from the places with most sightings on."""
    reach_S = REACH * np.linalg.norm(seen.points_S3 - seen.centres_S3, axis=1)
    tree = cKDTree(seen.points_S3)
    order = np.argsort(-tree.query_ball_point(seen.points_S3, reach_S, return_length=True, workers=-1), kind='stable')
    labels_S, count = np.full(len(order), -1), 0
    for first in order:
        if labels_S[first] < 0:
            near = np.array(tree.query_ball_point(seen.points_S3[first], reach_S[first]))
            near = near[labels_S[near] < 0]
            labels_S[near[seen.descriptors_SD[near] @ seen.descriptors_SD[first] > ALIKE]] = count
            labels_S[first] = count
            count += 1
    return labels_S


def meeting_points(seen: Sightings, labels_S: np.ndarray) -> np.ndarray:
    """(K, 3): the mean of the sightings of each label, each trusted across its ray much more than along it.

    Least squares, with weights that fall off where the mean is further than OUTLIER_PX from a ray. Across, too, a sighting counts with the
    place that its own frame triangulated, to which up to 16 other views have contributed, and not with its pixel alone.
    """
    distance_S = np.linalg.norm(seen.points_S3 - seen.centres_S3, axis=1)
    along_S33 = seen.rays_S3[:, :, None] * seen.rays_S3[:, None]
    information_S33 = (((np.eye(3) - along_S33) * (seen.focal_S / distance_S)[:, None, None] ** 2)
                       + along_S33 / (ALONG * distance_S)[:, None, None] ** 2)
    right_S3 = (information_S33 @ seen.points_S3[..., None])[..., 0]
    weights_S = np.ones(len(labels_S))
    for _ in range(ITERATIONS):
        normal_K33 = sums(weights_S[:, None, None] * information_S33, labels_S)
        points_K3 = np.linalg.solve(normal_K33, sums(weights_S[:, None] * right_S3, labels_S)[..., None])[..., 0]
        offset_S3 = points_K3[labels_S] - seen.centres_S3
        ahead_S = (offset_S3 * seen.rays_S3).sum(1)
        across_S = np.linalg.norm(offset_S3 - ahead_S[:, None] * seen.rays_S3, axis=1)
        weights_S = 1 / (1 + (across_S / distance_S * seen.focal_S / OUTLIER_PX) ** 2)
    return points_K3


def same_look(descriptors_SD: np.ndarray, views_S3: np.ndarray, labels_S: np.ndarray) -> np.ndarray:
    """A label (S,) for each sighting: those of one point that look the same from about the same place."""
    distance_S = np.linalg.norm(views_S3, axis=1)
    directions_S3 = views_S3 / distance_S[:, None]
    order = np.argsort(labels_S, kind='stable')
    looks_S, count = np.full(len(labels_S), -1), 0
    for members in np.split(order, np.flatnonzero(np.diff(labels_S[order])) + 1):
        while len(members):
            first = members[0]
            alike = ((descriptors_SD[members] @ descriptors_SD[first] > SAME_LOOK)
                     & (directions_S3[members] @ directions_S3[first] > np.cos(np.radians(SAME_LOOK_DEG)))
                     & (np.abs(np.log(distance_S[members] / distance_S[first])) < SAME_LOOK_LOG_RATIO))
            alike[0] = True
            looks_S[members[alike]] = count
            members, count = members[~alike], count + 1
    return looks_S


def replaced(found: dict[int, FramePoints], frames: list[Frame], points_S3: np.ndarray) -> dict[int, FramePoints]:
    """The points of all frames, moved; those that came to lie behind their camera stay."""
    moved, start = {}, 0
    for index, points in found.items():
        pose, to_S3 = frames[index].map_from_camera, points_S3[start:start + len(points.pixels_M2)]
        start += len(to_S3)
        depths_M = (to_S3 - pose[:3, 3]) @ pose[:3, 2]
        ahead_M = depths_M > 0
        moved[index] = replace(points, depths_M=np.where(ahead_M, depths_M, points.depths_M),
                               points_M3=np.where(ahead_M[:, None], to_S3, points.points_M3), within=None)
    return moved


def sums(values_S: np.ndarray, labels_S: np.ndarray) -> np.ndarray:
    """Of all values with the same label, (K, ...)."""
    out = np.zeros((labels_S.max() + 1, *values_S.shape[1:]))
    np.add.at(out, labels_S, values_S)
    return out
