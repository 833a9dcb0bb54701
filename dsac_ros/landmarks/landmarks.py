"""The landmarks of a sub-map, and how the keypoints of an image are matched to those that a first pose says should be seen.

The regressed coordinates are the retrieval: they say where the camera is to some decimetres; a match in that neighbourhood says it to
millimetres. All shapes are fixed, so that nothing waits for the device.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from dsac_ros.geometry import se3

COMPRESSED = 64  # numbers in a stored descriptor
SEEN_AT_ONCE = 2400
STRONGEST, TRIED_ANYWHERE = 300, 10_000  # keypoints against landmarks when the pose is unknown
BLOCK = 16  # of them, of which only the most similar one is looked at
DISTINCTION = 10.0  # how fast the odds of such a match fall with the ratio of its square distance to that of the next place
MAX_ANGLE_COSINE = 0.6  # between the direction that a landmark was mapped from and the one that it is seen from
MAX_LOG_RATIO = math.log(2.5)  # of the distances to it
MIN_SIMILARITY = 0.75
NEIGHBOURS = 4  # candidates among which the second best one is looked for
MIN_DEPTH = 0.05  # metres in front of the camera
NOWHERE = 1e3  # on the image plane, so far off that no keypoint is near
FAR = 1e9  # makes a square on the image plane larger than any similarity
NEAREST = 0.03  # distance of views that are as good as the same: held-out frames lie 0.01 to 0.03 from mapped ones, and tell of no less
SAME_PLACE = 0.03  # of the distance: landmarks this close are the same thing mapped twice


@dataclass(frozen=True)
class Landmarks:
    """points_L3 [m, map frame]; views_L3: from each point to the camera that mapped it [m]; descriptors_LC: float32, compressed, unit
    length; basis_DC: what compresses a descriptor; cameras_F34: map_from_camera of the views that mapped them, none in an old map.
    common_shift [rad]: what a whole view of them is turned by, standard deviation about an axis, and growth: what is added to the
    covariance factor; both at a distance of 1 from the nearest of these views (view_distance)."""

    points_L3: Tensor
    views_L3: Tensor
    descriptors_LC: Tensor
    basis_DC: Tensor
    cameras_F34: Tensor = field(default_factory=lambda: torch.zeros(0, 3, 4))
    common_shift: float = 0.0
    growth: float = 0.0

    @staticmethod
    def compressed(points_L3: Tensor, views_L3: Tensor, descriptors_LD: Tensor, cameras_F34: Tensor) -> Landmarks:
        """Keep the COMPRESSED directions in which descriptors of this place differ most: half the time and memory of matching."""
        basis_DC = torch.linalg.eigh(descriptors_LD.double().T @ descriptors_LD.double())[1][:, -COMPRESSED:].float().contiguous()
        return Landmarks(points_L3, views_L3, compress(descriptors_LD, basis_DC), basis_DC, cameras_F34)

    def tensors(self) -> dict[str, Tensor]:
        """For the map file: descriptors as signed bytes."""
        return {'landmarks.points': self.points_L3.float(), 'landmarks.views': self.views_L3.half(),
                'landmarks.descriptors': (self.descriptors_LC * 127).round().to(torch.int8), 'landmarks.basis': self.basis_DC.float(),
                'landmarks.cameras': self.cameras_F34.float(),
                'landmarks.common_shift': torch.tensor(self.common_shift, dtype=torch.float32),
                'landmarks.growth': torch.tensor(self.growth, dtype=torch.float32)}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> Landmarks:
        """The inverse of tensors()."""
        words = torch.nn.functional.normalize(tensors['landmarks.descriptors'].float(), dim=1)
        return Landmarks(tensors['landmarks.points'], tensors['landmarks.views'].float(), words, tensors['landmarks.basis'],
                         tensors['landmarks.cameras'], float(tensors['landmarks.common_shift']), float(tensors['landmarks.growth']))

    def to(self, device: torch.device) -> Landmarks:
        return replace(self, points_L3=self.points_L3.to(device), views_L3=self.views_L3.to(device), basis_DC=self.basis_DC.to(device),
                       descriptors_LC=self.descriptors_LC.to(device), cameras_F34=self.cameras_F34.to(device))

    @cached_property
    def points_3L(self) -> Tensor:
        """Coordinates as rows: what is computed for all landmarks takes a third of the time so."""
        return self.points_L3.T.contiguous()

    @cached_property
    def directions_3L(self) -> Tensor:
        """Unit vectors from each point to the camera that mapped it."""
        return torch.nn.functional.normalize(self.views_L3, dim=1).T.contiguous()

    @cached_property
    def log_distances_L(self) -> Tensor:
        """Of the camera that mapped each, logarithm of metres."""
        return self.views_L3.norm(dim=1).clamp(min=1e-9).log()

    @cached_property
    def sample(self) -> tuple[Tensor, Tensor, Tensor]:
        """Points, descriptors and log_distances_L of a part of all landmarks, evenly spread over their order and in whole
        BLOCKs: those that are tried whatever the pose."""
        every = max(1, -(-len(self.points_L3) // TRIED_ANYWHERE))
        index = torch.arange(0, len(self.points_L3), every, device=self.points_L3.device)
        index = torch.cat([index, index[-1:].expand(-len(index) % BLOCK)])
        return self.points_L3[index], self.descriptors_LC[index], self.log_distances_L[index]


def compress(descriptors_MD: Tensor, basis_DC: Tensor) -> Tensor:
    """(M, D) -> (M, C) of unit length."""
    return torch.nn.functional.normalize(descriptors_MD @ basis_DC, dim=1)


def view_distance(cameras_F34: Tensor, camera_from_map_44: Tensor, nearness: Tensor) -> Tensor:
    """How far a view is from the nearest mapped one: the turn between them [rad], and the way between the cameras as an angle at what is
    seen, added as squares; at least NEAREST. 1 where the map does not know its views.

    Args:
        nearness: one over the depth of what is seen [1/m].
    """
    if not len(cameras_F34):
        return torch.ones_like(nearness)
    cameras_F34 = cameras_F34.to(camera_from_map_44.dtype)
    way_F = (cameras_F34[:, :, 3] - se3.inverse(camera_from_map_44)[:3, 3]).norm(dim=1) * nearness
    turn_F = se3.rotation_angle(camera_from_map_44[:3, :3] @ cameras_F34[:, :, :3])
    return (way_F.square() + turn_F.square()).amin().sqrt().clamp(min=NEAREST)


def match_anywhere(landmarks: Landmarks, descriptors_MC: Tensor, usable_M: Tensor) -> tuple[Tensor, Tensor]:
    """For each of the strongest keypoints the most similar of a part of all landmarks, whatever the pose.

    Many are wrong, but the right ones agree: what finds the camera where the regressed coordinates do not.

    Returns:
        points (STRONGEST, 3) and sampling weights (STRONGEST,), zero without a match: large where no other place looks like it.
    """
    points_S3, descriptors_SC, log_distances_S = landmarks.sample
    similarity_MSB = (descriptors_MC[:STRONGEST] @ descriptors_SC.T).unflatten(1, (BLOCK, -1))
    # The best of each block, then the best blocks: choosing among all takes longer than the product.
    blocks_MK = similarity_MSB.amax(1).topk(min(NEIGHBOURS, similarity_MSB.shape[2]), dim=1).indices
    best_MK, within_MK = similarity_MSB.gather(2, blocks_MK[:, None].expand(-1, BLOCK, -1)).max(1)
    index_MK = within_MK * similarity_MSB.shape[2] + blocks_MK
    points_MK3 = points_S3[index_MK]
    apart_MK = (points_MK3 - points_MK3[:, :1]).norm(dim=-1) > SAME_PLACE * log_distances_S[index_MK[:, 0]].exp()[:, None]
    # Where all of them are one place, the next one is at most as similar as the last of them.
    second_M = torch.where(apart_MK, best_MK, best_MK[:, -1:]).amax(1)
    ratio_M = (1 - best_MK[:, 0]).clamp(min=0) / (1 - second_M).clamp(min=1e-6)
    good_M = usable_M[:STRONGEST] & (best_MK[:, 0] > MIN_SIMILARITY)
    return points_MK3[:, 0], torch.where(good_M, (-DISTINCTION * ratio_M).exp(), torch.zeros_like(ratio_M))


@dataclass(frozen=True)
class Candidates:
    """What of the landmarks may be in view of a pose: points_C3, where they project to on the plane z = 1 (places_C2), their depths_C [m],
    descriptors_CC of unit length and a mask visible_C."""

    points_C3: Tensor
    places_C2: Tensor
    depths_C: Tensor
    descriptors_CC: Tensor
    visible_C: Tensor


def candidates(landmarks: Landmarks, camera_from_map_44: Tensor, rays_M2: Tensor) -> Candidates:
    """The landmarks that the pose says are most likely in view of the keypoints, at most SEEN_AT_ONCE."""
    pose = camera_from_map_44.to(landmarks.points_L3.dtype)
    x_L, y_L, z_L = pose[:3, :3] @ landmarks.points_3L + pose[:3, 3:]
    limit_2 = rays_M2.abs().amax(0).to(pose.dtype) * 1.3 + 0.05
    towards_3L = -(pose[:3, :3].T @ pose[:3, 3:]) - landmarks.points_3L  # from the landmark to this camera, map frame
    distance_L = towards_3L.square().sum(0).clamp(min=1e-18).sqrt()
    cosine_L = (towards_3L * landmarks.directions_3L).sum(0) / distance_L
    ratio_L = (distance_L.log() - landmarks.log_distances_L).abs()
    visible_L = ((z_L > MIN_DEPTH) & (x_L.abs() < limit_2[0] * z_L) & (y_L.abs() < limit_2[1] * z_L)
                 & (cosine_L > MAX_ANGLE_COSINE) & (ratio_L < MAX_LOG_RATIO))
    likely_L = torch.where(visible_L, 2 + cosine_L - 0.5 * ratio_L, torch.zeros_like(z_L))
    chosen = likely_L.topk(min(SEEN_AT_ONCE, len(likely_L))).indices
    depths_C = z_L[chosen].clamp(min=MIN_DEPTH)
    places_C2 = torch.stack([x_L[chosen], y_L[chosen]], 1) / depths_C[:, None]
    return Candidates(landmarks.points_L3[chosen], places_C2, depths_C, landmarks.descriptors_LC[chosen], visible_L[chosen])


def match(found: Candidates, rays_M2: Tensor, descriptors_MC: Tensor, usable_M: Tensor, radius: Tensor | float,
          ratio: float) -> tuple[Tensor, Tensor]:
    """For each keypoint the most similar landmark within a radius on the image plane around where the pose projects it.

    A match holds when it is mutual and clearly more similar than any landmark of another place.

    Args:
        radius: on the plane z = 1. ratio: of the descriptor distances to the best and to the second place.
    Returns:
        points (M, 3) and the mask of keypoints with a match (M,).
    """
    # A comparison and torch.where over all pairs would take longer than the product of the descriptors; the smaller of two does not.
    within_MC = _within(rays_M2.to(found.places_C2.dtype), usable_M, found.places_C2, found.visible_C, radius)
    similarity = torch.minimum(descriptors_MC @ found.descriptors_CC.T, within_MC)
    best_MK, index_MK = similarity.topk(min(NEIGHBOURS, similarity.shape[1]), dim=1)
    points_MK3 = found.points_C3[index_MK]
    apart_MK = (points_MK3 - points_MK3[:, :1]).norm(dim=-1) > SAME_PLACE * found.depths_C[index_MK[:, 0]].clamp(min=0.1)[:, None]
    second_M = torch.where(apart_MK, best_MK, torch.full_like(best_MK, -1)).amax(1)
    # Descriptor distance of unit vectors: sqrt(2 - 2 cos).
    clear_M = 1 - best_MK[:, 0] < ratio ** 2 * (1 - second_M)
    mutual_M = best_MK[:, 0] >= similarity.amax(0)[index_MK[:, 0]]  # a tenth of the time of comparing places
    return points_MK3[:, 0], usable_M & clear_M & mutual_M & (best_MK[:, 0] > MIN_SIMILARITY)


def _within(places_M2: Tensor, usable_M: Tensor, places_C2: Tensor, usable_C: Tensor, radius: Tensor | float) -> Tensor:
    """(M, C), large where two places are closer than the radius, very negative where they are not or one is not usable."""
    places_M2 = torch.where(usable_M[:, None], places_M2, torch.full_like(places_M2, -NOWHERE))
    places_C2 = torch.where(usable_C[:, None], places_C2, torch.full_like(places_C2, NOWHERE))
    one_M1, one_C1 = torch.ones_like(places_M2[:, :1]), torch.ones_like(places_C2[:, :1])
    from_M4 = torch.cat([2 * places_M2, radius * radius - places_M2.square().sum(1, keepdim=True), -one_M1], 1)
    to_C4 = torch.cat([places_C2, one_C1, places_C2.square().sum(1, keepdim=True)], 1)
    return FAR * from_M4 @ to_C4.T
