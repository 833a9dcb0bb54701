"""The pose by keypoints: matched to landmarks of the map around a start, or whatever the pose, and solved by the one estimator."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dsac_ros.cell_grid import depths_at
from dsac_ros.config import EstimatorOptions
from dsac_ros.landmarks.keypoints import LOCALIZING, Keypoints, detect, padded
from dsac_ros.landmarks.landmarks import MIN_DEPTH, Landmarks, candidates, compress, match, match_anywhere, view_distance
from dsac_ros.landmarks.surroundings import Matched, Surroundings, look_around
from dsac_ros.ransac.correspondences import Correspondences
from dsac_ros.ransac.covariance import with_common_shift
from dsac_ros.ransac.estimator import refine_from
from dsac_ros.ransac.evidence import occupied, weighted_rms
from dsac_ros.records import Frame

MATCH_RATIO = 0.92  # of descriptor distances
WIDENING = 30.0  # of the noise at the start: some decimetres off, and ratio-tested matches are mostly right
NARROWING = 0.5  # of the noise at the end: most inliers are better than what tells them from outliers
NEAR_PX = 16.0  # radius of the search around a pose that keypoints agree on, in an image 480 pixels high
LOOKED_AROUND = 300  # keypoints for that: more of them take longer and find out no more
USUAL_DISTANCE = 0.15  # from the nearest mapped view (view_distance): near views of real rooms have 0.06 to 0.1, far ones 0.2 to 0.4
LEAST_MEASURED = 8  # inliers with a measured depth, from which on their median says something


@dataclass(frozen=True)
class Sight:
    """Keypoints of a frame on the device: rays_M2, places_M2 in the image (keypoints.padded), descriptors_MD, mask usable_M; pixel: one of
    an image 480 pixels high, on the plane z = 1. depths_M: [m] measured there, 0 where there is none; None without a depth image."""

    rays_M2: Tensor
    places_M2: Tensor
    descriptors_MD: Tensor
    usable_M: Tensor
    pixel: float
    depths_M: Tensor | None = None


@dataclass(frozen=True)
class View:
    """The same with descriptors_MC compressed as those of one map are."""

    rays_M2: Tensor
    places_M2: Tensor
    descriptors_MC: Tensor
    usable_M: Tensor
    pixel: float
    depths_M: Tensor | None = None


@dataclass(frozen=True)
class ByLandmarks:
    """A pose by landmarks near a start: pose_44, hessian_66, soft count of inliers, share of the image that they are spread over, their rms
    residual on the plane z = 1, whether they are enough, and the score (as in Solution). misfit: rms residual of the inliers in standard
    deviations of the noise that they are taken to have. depth_misfit: median of how far their measured depth is from that of the landmarks,
    as a share of it; NaN where fewer than LEAST_MEASURED have any. distance: from the nearest mapped view (landmarks.view_distance)."""

    pose_44: Tensor
    hessian_66: Tensor
    inliers: Tensor
    spread: Tensor
    rms: Tensor
    enough: Tensor
    score: Tensor
    misfit: Tensor
    depth_misfit: Tensor
    distance: Tensor


@torch.inference_mode()
def look(frame: Frame, device: torch.device, with_depth: bool) -> Sight:
    """Keypoints, their descriptors and, where it is wanted and there is any, their depth. Runs beside the encoder."""
    keypoints = detect(frame.image, frame.camera, LOCALIZING)
    arrays = padded(keypoints, frame.camera, LOCALIZING.count)
    if with_depth and frame.depth is not None:
        arrays = (*arrays, measured(frame.depth, keypoints, LOCALIZING.count))
    rays_M2, places_M2, words_MD, usable_M, *depths = (torch.from_numpy(array).to(device, non_blocking=True) for array in arrays)
    pixel = min(frame.camera.width, frame.camera.height) / 480 / frame.camera.fx
    return Sight(rays_M2, places_M2, words_MD, usable_M, pixel, *depths)


def measured(depth: np.ndarray, keypoints: Keypoints, count: int) -> np.ndarray:
    """(count,) float64 [m] at the keypoints, 0 where there is none."""
    depths = np.zeros(count)
    pixels = np.rint(keypoints.pixels_M2[:count]).astype(int).clip(0, [depth.shape[1] - 1, depth.shape[0] - 1])
    depths[:len(pixels)] = depths_at(depth, pixels)
    return depths


class Positioning:
    """The landmarks of a map on their device; covariance_factor: how far the Hessian understates the errors of poses at mapped views."""

    def __init__(self, landmarks: Landmarks, device: torch.device, options: EstimatorOptions, covariance_factor: float) -> None:
        self.landmarks, self.device = landmarks.to(device), device
        self.options, self.covariance_factor = options, covariance_factor

    @property
    def usual_factor(self) -> float:
        """The covariance factor at USUAL_DISTANCE: for what must not hang on the distance of the pose in question, which may be wrong. A
        wrong focal length moves it off the mapped views, and would be granted for that."""
        return self.covariance_factor + self.landmarks.growth * USUAL_DISTANCE

    @torch.inference_mode()
    def view(self, sight: Sight) -> View:
        """A frame as this map sees it."""
        words_MC = compress(sight.descriptors_MD, self.landmarks.basis_DC)
        return View(sight.rays_M2, sight.places_M2, words_MC, sight.usable_M, sight.pixel, sight.depths_M)

    @torch.inference_mode()
    def anywhere(self, view: View) -> tuple[Correspondences, Tensor]:
        """Matches of the strongest keypoints to any landmark of the map, whatever the pose, and weights to draw them by."""
        points_M3, weights_M = match_anywhere(self.landmarks, view.descriptors_MC, view.usable_M)
        problem = self._problem(points_M3, view.rays_M2[:len(weights_M)], weights_M > 0, view.pixel)
        return problem, weights_M.double()[None]

    def matches(self, view: View, start_44: Tensor, radius: Tensor | float) -> Correspondences:
        """Keypoints, all of them in their order, with the landmarks that they match near where a start puts these."""
        found = candidates(self.landmarks, start_44, view.rays_M2)
        points_M3, matched_M = match(found, view.rays_M2, view.descriptors_MC, view.usable_M, radius, MATCH_RATIO)
        return self._problem(points_M3, view.rays_M2, matched_M, view.pixel)

    def near(self, view: View, start_44: Tensor, radius: Tensor | float) -> ByLandmarks:
        """The pose by keypoints matched near where a start puts the landmarks."""
        options = self.options
        problem = self.matches(view, start_44, radius)
        solution = refine_from(problem, start_44[None, None], options, WIDENING, NARROWING)
        inliers, weights_M = solution.inliers_B[0], solution.weights_BN[0]
        # Landmarks on one poster agree on more than one pose; spread over the image they do not.
        spread = occupied(view.places_M2, weights_M, 1.5)
        enough = (inliers >= options.min_landmarks) & (spread >= options.min_landmark_spread)
        residuals = problem.residuals(problem.vectors(solution.camera_from_map_B44[:, None]))
        rms = weighted_rms(residuals.across_BKN[0, 0], residuals.range_BKN[0, 0].square(), weights_M)
        square_M = problem.whitened(residuals, torch.ones_like(problem.spread_B)[:, None]).square_BKN[0, 0]
        misfit = weighted_rms(square_M, torch.ones_like(square_M), weights_M)
        pose_44 = solution.camera_from_map_B44[0]
        distance = self._distance(pose_44, problem.points_BN3[0], weights_M)
        factor = self.covariance_factor + self.landmarks.growth * distance
        hessian_66 = with_common_shift(solution.hessian_B66[0] / factor, self.landmarks.common_shift * distance.sqrt())
        return ByLandmarks(pose_44, hessian_66, inliers, spread, rms, enough, solution.score_B[0], misfit,
                           depth_misfit(view, residuals.range_BKN[0, 0], weights_M), distance)

    @torch.inference_mode()
    def around(self, view: View, pose_44: Tensor) -> Surroundings:
        """What the landmarks that the strongest keypoints of a view match around its pose say of that."""
        names = ('rays_M2', 'places_M2', 'descriptors_MC', 'usable_M')
        strongest = replace(view, **{name: getattr(view, name)[:LOOKED_AROUND] for name in names})
        problem = self.matches(strongest, pose_44, self.options.landmark_radius_px * view.pixel)
        matched = Matched(problem.points_BN3[0], strongest.rays_M2.double(), strongest.places_M2, problem.known_BN[0].double(),
                          self.options.landmark_noise_px * view.pixel, self.options.landmark_noise)
        return look_around(matched, pose_44, self.usual_factor)

    def _distance(self, pose_44: Tensor, points_M3: Tensor, weights_M: Tensor) -> Tensor:
        """From the nearest mapped view, for a camera that sees these points."""
        depths_M = (points_M3 @ pose_44[2, :3] + pose_44[2, 3]).clamp(min=MIN_DEPTH)
        nearness = (weights_M / depths_M).sum() / weights_M.sum().clamp(min=1e-9)
        return view_distance(self.landmarks.cameras_F34, pose_44, nearness)

    def _problem(self, points_M3: Tensor, rays_M2: Tensor, usable_M: Tensor, pixel: float) -> Correspondences:
        bearings_M3, lengths_M = bearings_of(rays_M2)
        noise_M = torch.full_like(lengths_M, self.options.landmark_noise)
        return Correspondences(points_M3.double()[None], bearings_M3[None], noise_M[None],
                               (self.options.landmark_noise_px * pixel / lengths_M)[None], usable_M[None])


def depth_misfit(view: View, ranges_M: Tensor, weights_M: Tensor) -> Tensor:
    """As in ByLandmarks, of landmarks at ranges_M [m] along the rays of their keypoints, inliers with the probability weights_M."""
    if view.depths_M is None:
        return torch.full_like(weights_M[0], torch.nan)
    expected_M = ranges_M * bearings_of(view.rays_M2)[0][:, 2]
    used_M = (view.depths_M > 0) & (weights_M > 0.5)
    away_M = torch.where(used_M, (expected_M - view.depths_M).abs() / view.depths_M.clamp(min=1e-9), torch.inf).sort().values
    count = used_M.sum()
    median = away_M.gather(0, (count // 2)[None].clamp(max=len(away_M) - 1))[0]
    return torch.where(count >= LEAST_MEASURED, median, torch.nan)


def bearings_of(rays_N2: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (N, 3) along (x/z, y/z), and the lengths (N,) of (x/z, y/z, 1): distance over depth."""
    directions_N3 = torch.cat([rays_N2, torch.ones_like(rays_N2[:, :1])], 1)
    lengths_N = directions_N3.norm(dim=1)
    return directions_N3 / lengths_N[:, None], lengths_N
