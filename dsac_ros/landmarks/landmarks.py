"""The landmarks of a sub-map, and how the keypoints of an image are matched to those that a first pose says should be seen.

The regressed coordinates are the retrieval: they say where the camera is to some decimetres; a match in that neighbourhood says it to
millimetres. All shapes are fixed, so that nothing waits for the device.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

COMPRESSED = 64  # numbers in a stored descriptor
SEEN_AT_ONCE = 1600
STRONGEST, TRIED_ANYWHERE = 200, 6_000  # keypoints against landmarks when the pose is unknown
MAX_ANGLE_COSINE = 0.6  # between the direction that a landmark was mapped from and the one that it is seen from
MAX_DISTANCE_RATIO = 2.5
MIN_SIMILARITY = 0.75
NEIGHBOURS = 4  # candidates among which the second best one is looked for
SAME_PLACE = 0.03  # of the distance: landmarks this close are the same thing mapped twice


@dataclass(frozen=True)
class Landmarks:
    """points_L3 [m, map frame]; views_L3: from each point to the camera that mapped it [m]; descriptors_LC: float32, compressed, unit
    length; basis_DC: what compresses a descriptor."""

    points_L3: Tensor
    views_L3: Tensor
    descriptors_LC: Tensor
    basis_DC: Tensor

    @staticmethod
    def compressed(points_L3: Tensor, views_L3: Tensor, descriptors_LD: Tensor) -> Landmarks:
        """Keep the COMPRESSED directions in which descriptors of this place differ most: half the time and memory of matching."""
        basis_DC = torch.linalg.eigh(descriptors_LD.double().T @ descriptors_LD.double())[1][:, -COMPRESSED:].float().contiguous()
        return Landmarks(points_L3, views_L3, compress(descriptors_LD, basis_DC), basis_DC)

    def tensors(self) -> dict[str, Tensor]:
        """For the map file: descriptors as signed bytes."""
        return {'landmarks.points': self.points_L3.float(), 'landmarks.views': self.views_L3.half(),
                'landmarks.descriptors': (self.descriptors_LC * 127).round().to(torch.int8), 'landmarks.basis': self.basis_DC.float()}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> Landmarks:
        """The inverse of tensors()."""
        words = torch.nn.functional.normalize(tensors['landmarks.descriptors'].float(), dim=1)
        return Landmarks(tensors['landmarks.points'], tensors['landmarks.views'].float(), words, tensors['landmarks.basis'])

    def to(self, device: torch.device) -> Landmarks:
        return Landmarks(self.points_L3.to(device), self.views_L3.to(device), self.descriptors_LC.to(device), self.basis_DC.to(device))


def compress(descriptors_MD: Tensor, basis_DC: Tensor) -> Tensor:
    """(M, D) -> (M, C) of unit length."""
    return torch.nn.functional.normalize(descriptors_MD @ basis_DC, dim=1)


def match_anywhere(landmarks: Landmarks, descriptors_MC: Tensor, usable_M: Tensor) -> tuple[Tensor, Tensor]:
    """For each of the strongest keypoints the most similar of a part of all landmarks, whatever the pose.

    Many are wrong, but the right ones agree: what finds the camera where the regressed coordinates do not.

    Returns:
        points (STRONGEST, 3) and sampling weights (STRONGEST,), zero without a match.
    """
    part = max(1, len(landmarks.points_L3) // TRIED_ANYWHERE)
    similarity = descriptors_MC[:STRONGEST] @ landmarks.descriptors_LC[::part].T
    best_M, index_M = similarity.max(1)
    good_M = usable_M[:STRONGEST] & (best_M > MIN_SIMILARITY)
    return landmarks.points_L3[::part][index_M], torch.where(good_M, (20 * best_M).exp(), torch.zeros_like(best_M))


@dataclass(frozen=True)
class Candidates:
    """What of the landmarks may be in view of a pose: points_C3, a mask_C, and the similarity_MC of every keypoint to each."""

    points_C3: Tensor
    visible_C: Tensor
    similarity_MC: Tensor


def candidates(landmarks: Landmarks, camera_from_map_44: Tensor, rays_M2: Tensor, descriptors_MC: Tensor) -> Candidates:
    """The landmarks that the pose says are most likely in view, at most SEEN_AT_ONCE, against all keypoints."""
    pose = camera_from_map_44.to(landmarks.points_L3.dtype)
    camera_L3 = landmarks.points_L3 @ pose[:3, :3].T + pose[:3, 3]
    z_L = camera_L3[:, 2]
    plane_L2 = camera_L3[:, :2] / z_L.clamp(min=0.05)[:, None]
    limit_2 = rays_M2.abs().amax(0).to(plane_L2.dtype) * 1.3 + 0.05
    towards_L3 = -(camera_L3 @ pose[:3, :3])  # from the landmark to this camera, map frame
    distance_L, mapped_L = towards_L3.norm(dim=1), landmarks.views_L3.norm(dim=1)
    cosine_L = (towards_L3 * landmarks.views_L3).sum(1) / (distance_L * mapped_L).clamp(min=1e-9)
    ratio_L = (distance_L / mapped_L.clamp(min=1e-9)).clamp(min=1e-9).log().abs()
    visible_L = ((z_L > 0.05) & (plane_L2.abs() < limit_2).all(1) & (cosine_L > MAX_ANGLE_COSINE)
                 & (ratio_L.exp() < MAX_DISTANCE_RATIO))
    likely_L = torch.where(visible_L, 2 + cosine_L - 0.5 * ratio_L, torch.zeros_like(z_L))
    chosen = likely_L.topk(min(SEEN_AT_ONCE, len(likely_L))).indices
    return Candidates(landmarks.points_L3[chosen], visible_L[chosen], descriptors_MC @ landmarks.descriptors_LC[chosen].T)


def match(found: Candidates, camera_from_map_44: Tensor, rays_M2: Tensor, usable_M: Tensor, radius: Tensor | float,
          ratio: float) -> tuple[Tensor, Tensor]:
    """For each keypoint the most similar landmark within a radius on the image plane around where the pose projects it.

    A match holds when it is mutual and clearly more similar than any landmark of another place.

    Args:
        radius: on the plane z = 1. ratio: of the descriptor distances to the best and to the second place.
    Returns:
        points (M, 3) and the mask of keypoints with a match (M,).
    """
    pose = camera_from_map_44.to(found.points_C3.dtype)
    camera_C3 = found.points_C3 @ pose[:3, :3].T + pose[:3, 3]
    plane_C2 = camera_C3[:, :2] / camera_C3[:, 2:].clamp(min=0.05)
    near_MC = torch.cdist(rays_M2.to(plane_C2.dtype), plane_C2) < radius
    similarity = torch.where(near_MC & found.visible_C & usable_M[:, None], found.similarity_MC, torch.full_like(found.similarity_MC, -1))
    best_MK, index_MK = similarity.topk(min(NEIGHBOURS, similarity.shape[1]), dim=1)
    points_MK3 = found.points_C3[index_MK]
    apart_MK = (points_MK3 - points_MK3[:, :1]).norm(dim=-1) > SAME_PLACE * camera_C3[index_MK[:, 0], 2].clamp(min=0.1)[:, None]
    second_M = torch.where(apart_MK, best_MK, torch.full_like(best_MK, -1)).amax(1)
    # Descriptor distance of unit vectors: sqrt(2 - 2 cos).
    clear_M = 1 - best_MK[:, 0] < ratio ** 2 * (1 - second_M)
    mutual_M = best_MK[:, 0] >= similarity.amax(0)[index_MK[:, 0]]  # a tenth of the time of comparing places
    return points_MK3[:, 0], usable_M & clear_M & mutual_M & (best_MK[:, 0] > MIN_SIMILARITY)
