"""The whole chain on one screen: Frame -> Estimate. The node, the offline replay and the calibration of maps all call this."""
from __future__ import annotations

import gc
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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
from dsac_ros.landmarks.positioning import ByLandmarks, Positioning, View
from dsac_ros.maps.bundle import MapBundle, load_map
from dsac_ros.networks.encoder import STRIDE, image_to_tensor, input_size, shared_encoder
from dsac_ros.ransac.cells import cell_problem, finished_by_angle, guidance, searched_by_angle
from dsac_ros.ransac.correspondences import Correspondences, stacked
from dsac_ros.ransac.covariance import pose_covariance
from dsac_ros.ransac.estimator import Solution, estimate
from dsac_ros.ransac.evidence import occupied, weighted_rms
from dsac_ros.ransac.kernel import soft_inliers
from dsac_ros.ransac.sampling import uniform_draws
from dsac_ros.records import Camera, Estimate, Frame, Guess
from dsac_ros.tracking.integrity import judge

NEAR_PX = 16.0  # radius of the search around a pose that keypoints agree on, in an image 480 pixels high
MIN_ANYWHERE = 10.0  # inliers among the matches to anywhere, from which on their pose is the better start
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


def release_memory() -> None:
    """Free what is kept for the next map: the encoder, the cells of cameras, and a GPU's memory that no tensor holds any more."""
    shared_encoder.cache_clear()
    cell_grid.cache_clear()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


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
class Seen:
    """What a frame was localised by, kept on the device for who wants to look (dsac_ros.viewing): its keypoints, and its cells where
    they were asked."""

    view: View | None
    cells: Correspondences | None = None


class Stopwatch:
    """Milliseconds of the stages of a frame."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.stages[stage] = 1e3 * (now - self._last)
        self._last = now


def cell_depths(depth: np.ndarray, pixels_N2: np.ndarray) -> np.ndarray:
    """(N,) float32 metres at pixels (int), 0 where there is none: one NaN in the normal equations would spoil the pose."""
    values = depth[pixels_N2[:, 1], pixels_N2[:, 0]]
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
        self.positioning = None
        if bundle.landmarks and estimator.landmarks:
            self.positioning = Positioning(bundle.landmarks, self.device, estimator, bundle.covariance_factors['landmarks'])
        self.seen = Seen(None)  # of the last frame
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
        view = self._landmark_thread.submit(self.positioning.look, frame) if self.positioning else None
        if view is not None and guess is not None:
            tracked = self._track(frame, view.result(), guess, watch)
            self.seen = Seen(view.result())
            if tracked.verdict.accepted and tracked.landmarks >= guess.min_landmarks:
                return tracked
        anywhere = None if view is None else self._landmark_thread.submit(self.positioning.anywhere, view)
        grid = cell_grid(frame.camera)
        resized = cv2.resize(frame.image, (grid.width, grid.height), interpolation=cv2.INTER_AREA)
        depth = cell_depths(frame.depth, grid.pixels_N2) if modality == 'rgbd' and frame.depth is not None else None
        if depth is None or np.count_nonzero(depth) < MIN_DEPTH_CELLS:
            modality, depth = 'rgb', None
        watch.lap('prepare')
        maps_CHW = self.encoder(image_to_tensor(resized).to(self.device, non_blocking=True))[0]
        features = maps_CHW.flatten(1)[:, grid.cells_N.to(self.device)].T
        watch.lap('encoder')
        points_N3, scales_N, _ = self.expert(features)
        watch.lap('expert')
        cells = cell_problem(points_N3[None], scales_N[None], torch.from_numpy(grid.bearings_N3)[None].to(self.device), STRIDE / grid.focal,
                             None if depth is None else torch.from_numpy(depth)[None].to(self.device), self.estimator)
        matches = None if anywhere is None else anywhere.result()
        solutions = self._first_poses(frame, modality, cells, guidance(scales_N)[None], matches)
        finished = finished_by_angle(cells, solutions, self.estimator)
        pose_44, hessian_66 = finished.camera_from_map_B44[0], finished.hessian_B66[0] / self.bundle.covariance_factors[modality]
        landmarks, margin = torch.zeros_like(hessian_66[0, 0]), solutions.margin_B[0]
        watch.lap('estimator')
        if view is not None:
            near = self._near_first_poses(view.result(), solutions, pose_44)
            pose_44, hessian_66 = torch.where(near.enough, near.pose_44, pose_44), torch.where(near.enough, near.hessian_66, hessian_66)
            landmarks = torch.where(near.enough, near.inliers, landmarks)
            margin = torch.where(near.enough & (solutions.inliers_B[1] >= MIN_ANYWHERE), solutions.margin_B[1], margin)
            watch.lap('landmarks')
        support = self._cell_evidence(cells, pose_44, grid)
        if view is not None and cells.ranges_BN is not None:
            # Where the view is new, cells meet no depth: a pose by landmarks is not to be refused for it, as it is not without depth.
            across = self._cell_evidence(replace(cells, ranges_BN=None, range_noise_BN=None), pose_44, grid)
            support = [torch.where(near.enough, a, s) for a, s in zip(across[:3], support)] + [support[3]]
        evidence = self._evidence(pose_44, hessian_66, *support, landmarks, margin)
        watch.lap('evidence')
        self.seen = Seen(None if view is None else view.result(), cells)
        return self._answer(frame, modality, evidence, watch)

    def _track(self, frame: Frame, view: View, guess: Guess, watch: Stopwatch) -> Estimate:
        """The pose by the landmarks around a guess alone: no cells, hence none to count."""
        watch.lap('keypoints')
        start_44 = torch.from_numpy(guess.camera_from_map).to(self.device)
        near = self.positioning.near(view, start_44, guess.radius_px * view.pixel)
        none = torch.zeros_like(near.inliers)
        landmarks = torch.where(near.enough, near.inliers, none)
        evidence = self._evidence(near.pose_44, near.hessian_66, none, none, near.spread, near.rms, landmarks,
                                  torch.full_like(landmarks, torch.inf))
        watch.lap('tracking')
        return self._answer(frame, 'rgb', evidence, watch, tracked=True)

    def _first_poses(self, frame: Frame, modality: str, cells: Correspondences, weights_BN: Tensor,
                     anywhere: tuple[Correspondences, Tensor] | None) -> Solution:
        """The pose that the cells agree on, and with landmarks a second one, that matches to anywhere agree on: one batch."""
        problem = searched_by_angle(cells, self.estimator)
        if anywhere is not None:
            problem, weights_BN = stacked(problem, weights_BN, *anywhere)
        count = self.estimator.hypotheses_rgb if modality == 'rgb' else self.estimator.hypotheses_rgbd
        draws_BK3 = uniform_draws([frame.stamp_ns & 0x7FFFFFFFFFFFFFFF], count, self.device).expand(len(weights_BN), -1, -1)
        return estimate(problem, weights_BN, draws_BK3, self.estimator)

    def _near_first_poses(self, view: View, first: Solution, pose_44: Tensor) -> ByLandmarks:
        # A pose by keypoints is pixels off and wants a narrow search, one by cells decimetres and a wide one.
        precise = first.inliers_B[1] >= MIN_ANYWHERE
        start_44 = torch.where(precise, first.camera_from_map_B44[1], pose_44)
        return self.positioning.near(view, start_44, torch.where(precise, NEAR_PX, self.estimator.landmark_radius_px) * view.pixel)

    def _cell_evidence(self, problem: Correspondences, pose_44: Tensor, grid: CellGrid) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the cells at a pose: soft inliers, usable ones, spread over the image, rms residual of the inliers."""
        residuals = problem.residuals(problem.vectors(pose_44[None, None]))
        white = problem.whitened(residuals, torch.ones_like(problem.spread_B)[:, None])
        seen_N, white_N, across_N, along_N, range_N = (values[0, 0] for values in (
            residuals.seen_BKN, white.square_BKN, residuals.across_BKN, residuals.along_BKN, residuals.range_BKN))
        if problem.ranges_BN is None:
            known_N, square_N, over_N = problem.known_BN[0], across_N, range_N.square()
        else:
            known_N, square_N, over_N = problem.measured_BN[0], across_N + along_N.square(), torch.ones_like(across_N)
        weights_N = torch.where(seen_N & known_N, soft_inliers(white_N.sqrt(), self.estimator.inlier_sigmas), torch.zeros_like(white_N))
        spread = occupied(torch.from_numpy(grid.pixels_N2).double().to(self.device), weights_N, 0.05 * len(weights_N) / 16)
        return weights_N.sum(), known_N.sum(), spread, weighted_rms(square_N, over_N, weights_N)

    def _evidence(self, pose_44: Tensor, hessian_66: Tensor, *numbers: Tensor) -> np.ndarray:
        """All that goes to the host, in one copy: map_from_camera (16), covariance (36), and the numbers that _answer unpacks."""
        parts = [se3.inverse(pose_44).flatten(), pose_covariance(hessian_66, pose_44).flatten(), torch.stack([n.double() for n in numbers])]
        return torch.cat(parts).cpu().numpy()

    def _answer(self, frame: Frame, modality: str, evidence: np.ndarray, watch: Stopwatch, tracked: bool = False) -> Estimate:
        map_from_camera, covariance = evidence[:16].reshape(4, 4), evidence[16:52].reshape(6, 6)
        inliers, usable, spread, rms, landmarks, margin = map(float, evidence[52:])
        ratio = inliers / max(1.0, usable)
        entry = self.bundle.entry
        cells_suffice = not tracked and (modality == 'rgbd' or self.positioning is None or not self.integrity.require_landmarks)
        verdict = judge(map_from_camera, covariance, inliers, ratio, spread, landmarks, cells_suffice, tracked, np.array(entry.centre),
                        np.array(entry.extent), self.integrity, margin)
        return Estimate(frame.stamp_ns, map_from_camera, covariance, verdict, modality, entry.name, inliers, ratio, spread,
                        rms * (frame.camera.fx if modality == 'rgb' else 1.0), dict(watch.stages), landmarks, tracked, margin)
