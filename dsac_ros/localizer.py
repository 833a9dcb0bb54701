"""The whole chain on one screen: Frame -> Estimate. The node, the offline replay and the calibration of maps all call this."""
from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dsac_ros.config import EstimatorOptions, IntegrityOptions
from dsac_ros.errors import ConfigError
from dsac_ros.geometry import se3
from dsac_ros.geometry.camera import bearings, cell_centres
from dsac_ros.landmarks.keypoints import LOCALIZING, detect, padded
from dsac_ros.landmarks.landmarks import candidates, compress, match, match_anywhere
from dsac_ros.maps.bundle import MapBundle, load_map
from dsac_ros.networks.encoder import STRIDE, image_to_tensor, input_size, shared_encoder
from dsac_ros.ransac.correspondences import Correspondences
from dsac_ros.ransac.covariance import pose_covariance
from dsac_ros.ransac.estimator import Solution, estimate, refine_from
from dsac_ros.ransac.kernel import soft_inliers
from dsac_ros.ransac.sampling import uniform_draws
from dsac_ros.records import Camera, Estimate, Frame, Guess
from dsac_ros.tracking.integrity import judge

MATCH_RATIO = 0.88  # of descriptor distances
NEAR_PX = 16.0  # radius of the search around a pose that keypoints agree on, in an image 480 pixels high
LANDMARK_WIDENING = 30.0  # of the noise at the start: some decimetres off, and ratio-tested matches are mostly right
LANDMARK_NARROWING = 0.35  # of the noise at the end: most inliers are better than what tells them from outliers
MIN_ANYWHERE = 10.0  # inliers among the matches to anywhere, from which on their pose is the better start
MIN_COSINE = 0.2  # of the angle off the axis: further out, depth (along the axis) says nothing of the distance
MIN_DEPTH_CELLS = 30  # fewer cells with depth than this: the frame is solved as RGB


def resolve_device(name: str) -> torch.device:
    """'auto' takes a GPU where there is one. Raises ConfigError for what is no device, and for a GPU that is not there."""
    try:
        device = torch.device(('cuda' if torch.cuda.is_available() else 'cpu') if name == 'auto' else name)
    except RuntimeError as error:
        raise ConfigError(f'device: expected auto, cpu, cuda or cuda:N, found {name!r}') from error
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise ConfigError(f'device {name}: torch sees no CUDA device; use cpu')
    return device


@dataclass(frozen=True)
class CellGrid:
    """The cells of one camera's images that are used: every second one, as on a chessboard, since neighbours see nearly the same.

    cells_N: their indices in the encoder's grid. pixels_N2: int, of the image as it comes. bearings_N3:
    unit viewing rays. focal: [px] of the resized image.
    """

    width: int
    height: int
    cells_N: Tensor
    pixels_N2: np.ndarray
    bearings_N3: np.ndarray
    focal: float


@lru_cache(maxsize=16)
def cell_grid(camera: Camera) -> CellGrid:
    """Distortion is undone here, once per camera and for the cells alone."""
    width, height = input_size(camera.width, camera.height)
    centres = cell_centres(width, height, STRIDE)
    chosen = np.flatnonzero(np.indices(centres.shape[:2]).sum(0).ravel() % 2 == 0)
    pixels = (centres.reshape(-1, 2)[chosen] + 0.5) * [camera.width / width, camera.height / height] - 0.5
    return CellGrid(width, height, torch.from_numpy(chosen), np.rint(pixels).astype(int), bearings(camera, pixels),
                    camera.resized(width, height).fx)


@dataclass(frozen=True)
class View:
    """Keypoints of a frame on the device: rays_M2, compressed descriptors_MC, mask usable_M; pixel: one of an image 480 pixels high, on the
    plane z = 1."""

    rays_M2: Tensor
    descriptors_MC: Tensor
    usable_M: Tensor
    pixel: float


@dataclass(frozen=True)
class ByLandmarks:
    """A pose by landmarks near a start: pose_44, hessian_66, soft count of inliers, share of the image that they are spread over, their rms
    residual on the plane z = 1, and whether they are enough."""

    pose_44: Tensor
    hessian_66: Tensor
    inliers: Tensor
    spread: Tensor
    rms: Tensor
    enough: Tensor


class Stopwatch:
    """Milliseconds of the stages of a frame."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.stages[stage] = 1e3 * (now - self._last)
        self._last = now


def cell_depths(depth: np.ndarray, grid: CellGrid) -> np.ndarray:
    """(N,) float32 metres at the cells, 0 where there is none: one NaN in the normal equations would spoil the pose."""
    values = depth[grid.pixels_N2[:, 1], grid.pixels_N2[:, 0]]
    return np.where(np.isfinite(values) & (values > 0), values, np.float32(0))


class Localizer:
    """A map, ready on its device. Deterministic: the random numbers of a frame come from its stamp."""

    def __init__(self, bundle: MapBundle, device: str = 'auto', estimator: EstimatorOptions = EstimatorOptions(),
                 integrity: IntegrityOptions = IntegrityOptions()) -> None:
        self.device = resolve_device(device)
        self.bundle, self.estimator, self.integrity = bundle, estimator, integrity
        self.encoder = shared_encoder(str(self.device))
        self.expert = bundle.expert.to(self.device)
        self.map_frame = bundle.frame_id
        self.landmarks = bundle.landmarks.to(self.device) if bundle.landmarks and estimator.landmarks else None
        # Beside the encoder: OpenCV and torch both release the interpreter.
        self._landmark_thread = ThreadPoolExecutor(1, 'landmarks')

    @classmethod
    def from_map(cls, path: str | Path, device: str = 'auto', estimator: EstimatorOptions = EstimatorOptions(),
                 integrity: IntegrityOptions = IntegrityOptions()) -> Localizer:
        """Load a map bundle. Raises MapError."""
        return cls(load_map(path), device, estimator, integrity)

    def warm_up(self, camera: Camera | None, modality: str) -> None:
        """Run a few blank frames, so that the first real one costs no more than the others."""
        camera = camera or Camera(640, 480, 525.0, 525.0, 319.5, 239.5)
        shape = (camera.height, camera.width)
        depth = np.ones(shape, np.float32) if modality == 'rgbd' else None
        for stamp in range(1, 4):
            self.localize(Frame(np.zeros((*shape, 3), np.uint8), camera, stamp, depth), modality)

    @torch.inference_mode()
    def localize(self, frame: Frame, modality: str, guess: Guess | None = None) -> Estimate:
        """The camera's pose in the map, and whether it may be trusted. 'rgbd' falls back to 'rgb' where there is too little depth.

        Args:
            guess: where landmarks confirm it, the rest of the chain is not run.
        """
        watch = Stopwatch()
        view = self._landmark_thread.submit(self._look, frame) if self.landmarks else None
        if view is not None and guess is not None:
            tracked = self._track(frame, view.result(), guess, watch)
            if tracked.verdict.accepted and tracked.landmarks >= guess.min_landmarks:
                return tracked
        anywhere = None if view is None else self._landmark_thread.submit(self._match_anywhere, view)
        grid = cell_grid(frame.camera)
        resized = cv2.resize(frame.image, (grid.width, grid.height), interpolation=cv2.INTER_AREA)
        depth = cell_depths(frame.depth, grid) if modality == 'rgbd' and frame.depth is not None else None
        if depth is None or np.count_nonzero(depth) < MIN_DEPTH_CELLS:
            modality, depth = 'rgb', None
        watch.lap('prepare')
        maps_CHW = self.encoder(image_to_tensor(resized).to(self.device, non_blocking=True))[0]
        features = maps_CHW.flatten(1)[:, grid.cells_N.to(self.device)].T
        watch.lap('encoder')
        points_N3, scales_N, _ = self.expert(features)
        watch.lap('expert')
        cells = self._cell_problem(grid, points_N3.double(), scales_N.double(), depth)
        matches = None if anywhere is None else anywhere.result()
        problem, solutions = self._first_poses(frame, modality, cells, guidance(scales_N)[None], matches)
        pose_44, hessian_66 = solutions.camera_from_map_B44[0], solutions.hessian_B66[0] / self.bundle.covariance_factors[modality]
        landmarks = torch.zeros_like(hessian_66[0, 0])
        watch.lap('estimator')
        if view is not None:
            near = self._near_first_poses(view.result(), solutions, pose_44)
            pose_44, hessian_66 = torch.where(near.enough, near.pose_44, pose_44), torch.where(near.enough, near.hessian_66, hessian_66)
            landmarks = torch.where(near.enough, near.inliers, landmarks)
            watch.lap('landmarks')
        evidence = self._evidence(pose_44, hessian_66, *self._cell_evidence(problem, pose_44, grid), landmarks)
        watch.lap('evidence')
        return self._answer(frame, modality, evidence, watch)

    def _track(self, frame: Frame, view: View, guess: Guess, watch: Stopwatch) -> Estimate:
        """The pose by the landmarks around a guess alone: no cells, hence none to count."""
        watch.lap('keypoints')
        start_44 = torch.from_numpy(guess.camera_from_map).to(self.device)
        near = self._near(view, start_44, guess.radius_px * view.pixel)
        none = torch.zeros_like(near.inliers)
        landmarks = torch.where(near.enough, near.inliers, none)
        evidence = self._evidence(near.pose_44, near.hessian_66, none, none, near.spread, near.rms, landmarks)
        watch.lap('tracking')
        return self._answer(frame, 'rgb', evidence, watch, tracked=True)

    @torch.inference_mode()
    def _look(self, frame: Frame) -> View:
        """Keypoints and their descriptors. Runs beside the encoder."""
        rays, words, usable = padded(detect(frame.image, frame.camera, LOCALIZING), LOCALIZING.count)
        rays_M2, words_MD, usable_M = (torch.from_numpy(array).to(self.device, non_blocking=True) for array in (rays, words, usable))
        pixel = min(frame.camera.width, frame.camera.height) / 480 / frame.camera.fx
        return View(rays_M2, compress(words_MD, self.landmarks.basis_DC), usable_M, pixel)

    @torch.inference_mode()
    def _match_anywhere(self, looking: Future[View]) -> tuple[Correspondences, Tensor]:
        """Matches of the strongest keypoints to any landmark of the map, whatever the pose, and weights to draw them by."""
        view = looking.result()
        points_M3, weights_M = match_anywhere(self.landmarks, view.descriptors_MC, view.usable_M)
        problem = self._landmark_problem(points_M3, view.rays_M2[:len(weights_M)], weights_M > 0, view.pixel)
        return problem, weights_M.double()[None]

    def _first_poses(self, frame: Frame, modality: str, cells: Correspondences, weights_BN: Tensor,
                     anywhere: tuple[Correspondences, Tensor] | None) -> tuple[Correspondences, Solution]:
        """The pose that the cells agree on, and with landmarks a second one, that matches to anywhere agree on: one batch."""
        problem = cells
        if anywhere is not None:
            problem, weights_BN = stacked(cells, weights_BN, *anywhere)
        count = self.estimator.hypotheses_rgb if modality == 'rgb' else self.estimator.hypotheses_rgbd
        draws_BK3 = uniform_draws([frame.stamp_ns & 0x7FFFFFFFFFFFFFFF], count, self.device).expand(len(weights_BN), -1, -1)
        return problem, estimate(problem, weights_BN, draws_BK3, self.estimator)

    def _near_first_poses(self, view: View, first: Solution, pose_44: Tensor) -> ByLandmarks:
        # A pose by keypoints is pixels off and wants a narrow search, one by cells decimetres and a wide one.
        precise = first.inliers_B[1] >= MIN_ANYWHERE
        start_44 = torch.where(precise, first.camera_from_map_B44[1], pose_44)
        return self._near(view, start_44, torch.where(precise, NEAR_PX, self.estimator.landmark_radius_px) * view.pixel)

    def _near(self, view: View, start_44: Tensor, radius: Tensor | float) -> ByLandmarks:
        """The pose by keypoints matched near where a start puts the landmarks."""
        options, rays_M2 = self.estimator, view.rays_M2
        found = candidates(self.landmarks, start_44, rays_M2)
        points_M3, matched_M = match(found, rays_M2, view.descriptors_MC, view.usable_M, radius, MATCH_RATIO)
        problem = self._landmark_problem(points_M3, rays_M2, matched_M, view.pixel)
        solution = refine_from(problem, start_44[None, None], options, LANDMARK_WIDENING, LANDMARK_NARROWING)
        inliers, weights_M = solution.inliers_B[0], solution.weights_BN[0]
        # Landmarks on one poster agree on more than one pose; spread over the image they do not.
        spread = occupied(rays_M2, weights_M, 1.5)
        enough = (inliers >= options.min_landmarks) & (spread >= options.min_landmark_spread)
        residuals = problem.residuals(problem.vectors(solution.camera_from_map_B44[:, None]))
        rms = weighted_rms(residuals.across_BKN[0, 0], residuals.range_BKN[0, 0].square(), weights_M)
        hessian_66 = solution.hessian_B66[0] / self.bundle.covariance_factors['landmarks']
        return ByLandmarks(solution.camera_from_map_B44[0], hessian_66, inliers, spread, rms, enough)

    def _landmark_problem(self, points_M3: Tensor, rays_M2: Tensor, usable_M: Tensor, pixel: float) -> Correspondences:
        bearings_M3, lengths_M = bearings_of(rays_M2)
        noise_M = torch.full_like(lengths_M, self.estimator.landmark_noise)
        return Correspondences(points_M3.double()[None], bearings_M3[None], noise_M[None],
                               (self.estimator.landmark_noise_px * pixel / lengths_M)[None], usable_M[None])

    def _cell_problem(self, grid: CellGrid, points_N3: Tensor, scales_N: Tensor, depth_N: np.ndarray | None) -> Correspondences:
        bearings_N3 = torch.from_numpy(grid.bearings_N3).to(self.device)
        lengths_N = 1 / bearings_N3[:, 2].clamp(min=MIN_COSINE)
        deviations_N = self.estimator.scale_factor * scales_N
        angles_N = self.estimator.pixel_noise * STRIDE / grid.focal / lengths_N
        usable_N = torch.ones_like(scales_N, dtype=torch.bool)
        ranges_BN = noise_BN = None
        if depth_N is not None:
            z_N = torch.from_numpy(depth_N).double().to(self.device)
            z_N = torch.where(bearings_N3[:, 2] > MIN_COSINE, z_N, torch.zeros_like(z_N))
            ranges_BN = (z_N * lengths_N)[None]
            noise_BN = ((self.estimator.depth_noise_floor + self.estimator.depth_noise * z_N.square()) * lengths_N)[None]
        return Correspondences(points_N3[None], bearings_N3[None], deviations_N[None], angles_N[None], usable_N[None], ranges_BN, noise_BN)

    def _cell_evidence(self, problem: Correspondences, pose_44: Tensor, grid: CellGrid) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the cells at a pose: soft inliers, usable ones, spread over the image, rms residual of the inliers."""
        batch = len(problem.points_BN3)
        residuals = problem.residuals(problem.vectors(pose_44.expand(batch, 1, 4, 4)))
        white = problem.whitened(residuals, torch.ones_like(problem.spread_B)[:, None])
        count = len(grid.cells_N)
        seen_N, white_N, across_N, along_N, range_N = (values[0, 0, :count] for values in (
            residuals.seen_BKN, white.square_BKN, residuals.across_BKN, residuals.along_BKN, residuals.range_BKN))
        if problem.ranges_BN is None:
            known_N, square_N, over_N = problem.known_BN[0, :count], across_N, range_N.square()
        else:
            known_N, square_N, over_N = problem.measured_BN[0, :count], across_N + along_N.square(), torch.ones_like(across_N)
        weights_N = torch.where(seen_N & known_N, soft_inliers(white_N.sqrt(), self.estimator.inlier_sigmas), torch.zeros_like(white_N))
        spread = occupied(torch.from_numpy(grid.pixels_N2).double().to(self.device), weights_N, 0.05 * len(weights_N) / 16)
        return weights_N.sum(), known_N.sum(), spread, weighted_rms(square_N, over_N, weights_N)

    def _evidence(self, pose_44: Tensor, hessian_66: Tensor, *numbers: Tensor) -> np.ndarray:
        """All that goes to the host, in one copy: map_from_camera (16), covariance (36), and the numbers that _answer unpacks."""
        parts = [se3.inverse(pose_44).flatten(), pose_covariance(hessian_66, pose_44).flatten(), torch.stack([n.double() for n in numbers])]
        return torch.cat(parts).cpu().numpy()

    def _answer(self, frame: Frame, modality: str, evidence: np.ndarray, watch: Stopwatch, tracked: bool = False) -> Estimate:
        map_from_camera, covariance = evidence[:16].reshape(4, 4), evidence[16:52].reshape(6, 6)
        inliers, usable, spread, rms, landmarks = map(float, evidence[52:])
        ratio = inliers / max(1.0, usable)
        entry = self.bundle.entry
        cells_suffice = not tracked and (modality == 'rgbd' or self.landmarks is None or not self.integrity.require_landmarks)
        verdict = judge(map_from_camera, covariance, inliers, ratio, spread, landmarks, cells_suffice, np.array(entry.centre),
                        np.array(entry.extent), self.integrity)
        return Estimate(frame.stamp_ns, map_from_camera, covariance, verdict, modality, entry.name, inliers, ratio, spread,
                        rms * (frame.camera.fx if modality == 'rgb' else 1.0), dict(watch.stages), landmarks, tracked)


def weighted_rms(square_N: Tensor, over_N: Tensor, weights_N: Tensor) -> Tensor:
    """Root of the weighted sum of squares over that of other squares, 0 without any weight: one point at the camera's own centre, where an
    angle means nothing, does not spoil it as it would a mean of ratios."""
    square, over = ((weights_N * values_N.nan_to_num(0, 0, 0)).sum() for values_N in (square_N, over_N))
    return (square / over.clamp(min=1e-9)).sqrt()


def bearings_of(rays_N2: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (N, 3) along (x/z, y/z), and the lengths (N,) of (x/z, y/z, 1): distance over depth."""
    directions_N3 = torch.cat([rays_N2, torch.ones_like(rays_N2[:, :1])], 1)
    lengths_N = directions_N3.norm(dim=1)
    return directions_N3 / lengths_N[:, None], lengths_N


def stacked(one: Correspondences, one_weights: Tensor, two: Correspondences, two_weights: Tensor) -> tuple[Correspondences, Tensor]:
    """Two problems as one batch: the shorter one is filled up with correspondences that are not usable, depth with none."""
    length = max(one_weights.shape[1], two_weights.shape[1])

    def pad(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (0, 0) * (values.dim() - 2) + (0, length - values.shape[1]))

    def both(name: str) -> Tensor | None:
        first, second = getattr(one, name), getattr(two, name)
        if first is None and second is None:
            return None
        first = torch.zeros_like(second) if first is None else first
        second = torch.zeros_like(first) if second is None else second
        return torch.cat([pad(first), pad(second)])

    names = ('points_BN3', 'bearings_BN3', 'scales_BN', 'angles_BN', 'usable_BN', 'ranges_BN', 'range_noise_BN')
    return Correspondences(**{name: both(name) for name in names}), torch.cat([pad(one_weights), pad(two_weights)])


def occupied(places_N2: Tensor, weights_N: Tensor, least: float) -> Tensor:
    """Share of a 4 x 4 grid over the view whose tiles hold more than `least` of the weights."""
    low_2, high_2 = places_N2.amin(0), places_N2.amax(0)
    tile_N2 = (4 * (places_N2 - low_2) / (high_2 - low_2 + 1e-9)).clamp(max=3.99).long()
    per_tile = torch.zeros(16, dtype=weights_N.dtype, device=weights_N.device).index_add_(0, 4 * tile_N2[:, 1] + tile_N2[:, 0], weights_N)
    return (per_tile > least).double().mean()


def guidance(scales_N: Tensor) -> Tensor:
    """Sampling weights of the cells from the uncertainty of their coordinates."""
    return 1 / scales_N.double().square()
