"""The whole chain on one screen: Frame -> Estimate. The node, the offline replay and the calibration of maps all call this."""
from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dsac_ros.config import EstimatorOptions, GatingOptions, IntegrityOptions
from dsac_ros.errors import ConfigError
from dsac_ros.geometry import se3
from dsac_ros.geometry.camera import bearings, cell_centres
from dsac_ros.landmarks.positioning import ByLandmarks, Positioning, Sight, View, look
from dsac_ros.maps.bundle import MapBundle
from dsac_ros.maps.site import Site, SubMaps, open_site, site_of
from dsac_ros.networks.encoder import STRIDE, image_to_tensor, input_size, shared_encoder
from dsac_ros.networks.expert import Expert, predict
from dsac_ros.networks.gating import Gating, Prototypes, describe
from dsac_ros.ransac.cells import cell_problem, finished_by_angle, guidance, searched_by_angle
from dsac_ros.ransac.correspondences import Correspondences, stacked
from dsac_ros.ransac.covariance import pose_covariance
from dsac_ros.ransac.estimator import Solution, estimate
from dsac_ros.ransac.evidence import occupied, weighted_rms
from dsac_ros.ransac.experts import agreement, draws_of_parts, parts_of_budget, posterior, problem_of
from dsac_ros.ransac.kernel import soft_inliers
from dsac_ros.ransac.sampling import uniform_draws
from dsac_ros.records import Camera, Estimate, Frame, Guess
from dsac_ros.tracking.integrity import judge, judge_place

NEAR_PX = 16.0  # radius of the search around a pose that keypoints agree on, in an image 480 pixels high
MIN_ANYWHERE = 10.0  # inliers among the matches to anywhere, from which on their pose is the better start
MIN_DEPTH_CELLS = 30  # fewer cells with depth than this: the frame is solved as RGB
MATCHED_EXPERTS = 2  # sub-maps whose landmarks are looked at in one frame
EXPECTED = 0.5  # probability from which on a sub-map is looked at beside the encoder, before gating says which it is
HOPELESS = 1e-3  # probability below which the runner-up's landmarks are not looked at
NONE = ''  # the name of no sub-map, in a posterior


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


@dataclass
class SubMap:
    """A sub-map on its device; without positioning where it has no landmarks, or they are not asked."""

    bundle: MapBundle
    expert: Expert
    positioning: Positioning | None


@dataclass(frozen=True)
class Attempt:
    """A sub-map that may have been seen: keypoints and, for the most likely ones, matches to anywhere, on their way beside the network."""

    index: int
    sub_map: SubMap
    view: Future[View] | None
    anywhere: Future[tuple[Correspondences, Tensor]] | None = None

    def matched(self, thread: ThreadPoolExecutor) -> Attempt:
        """With matches to anywhere begun."""
        if self.view is None or self.anywhere is not None:
            return self
        view, positioning = self.view, self.sub_map.positioning
        return replace(self, anywhere=thread.submit(lambda: positioning.anywhere(view.result())))


@dataclass(frozen=True)
class Pose:
    """Of one attempt: camera_from_map_44 and hessian_66 in the frame of the sub-map, soft count and score of the landmarks, 0 where they
    are not enough."""

    camera_from_map_44: Tensor
    hessian_66: Tensor
    landmarks: Tensor
    score: Tensor


class Localizer:
    """A map, ready on its device. Deterministic: the random numbers of a frame come from its stamp."""

    def __init__(self, bundle: MapBundle | Site, device: str = 'auto', estimator: EstimatorOptions = EstimatorOptions(),
                 integrity: IntegrityOptions = IntegrityOptions(), gating: GatingOptions = GatingOptions()) -> None:
        self.device = resolve_device(device)
        self.site = site_of(bundle) if isinstance(bundle, MapBundle) else bundle
        self.estimator, self.integrity, self.gating_options = estimator, integrity, gating
        self.encoder = shared_encoder(str(self.device))
        self.map_frame = self.site.frame_id
        self.sub_maps = SubMaps(self._made_ready, gating.experts_in_memory)
        self.gating = None
        if len(self.site.entries) > 1:
            self.gating = Gating([Prototypes(each.descriptors_MD.to(self.device)) for each in self.site.prototypes])
        else:
            self.sub_maps.get(0)
        # Beside the encoder: OpenCV and torch both release the interpreter.
        self._landmark_thread = ThreadPoolExecutor(1, 'landmarks')

    @classmethod
    def from_map(cls, path: str | Path, device: str = 'auto', estimator: EstimatorOptions = EstimatorOptions(),
                 integrity: IntegrityOptions = IntegrityOptions(), gating: GatingOptions = GatingOptions()) -> Localizer:
        """Open a map. Raises MapError."""
        return cls(open_site(path), device, estimator, integrity, gating)

    def warm_up(self, camera: Camera | None, modality: str) -> None:
        """Run a few blank frames, so that the first real one costs no more than the others."""
        camera = camera or Camera(640, 480, 525.0, 525.0, 319.5, 239.5)
        shape = (camera.height, camera.width)
        depth = np.ones(shape, np.float32) if modality == 'rgbd' else None
        for stamp in range(1, 4):
            self.localize(Frame(np.zeros((*shape, 3), np.uint8), camera, stamp, depth), modality)

    @torch.inference_mode()
    def localize(self, frame: Frame, modality: str, guess: Guess | None = None, prior: Mapping[str, float] | None = None) -> Estimate:
        """The camera's pose in the map, and whether it may be trusted. 'rgbd' falls back to 'rgb' where there is too little depth.

        Args:
            guess: where landmarks confirm it, the rest of the chain is not run. prior: probability of each sub-map before the frame.
        """
        watch = Stopwatch()
        sight = self._landmark_thread.submit(look, frame, self.device) if self.estimator.landmarks and self._has_landmarks() else None
        expected = self._expected(guess, prior)
        attempt = None if expected is None else self._attempt(expected, sight)
        if guess is not None and attempt.view is not None:
            tracked = self._track(frame, attempt, guess, prior, watch)
            if tracked.verdict.accepted and tracked.landmarks >= guess.min_landmarks:
                return tracked
        attempt = None if attempt is None else attempt.matched(self._landmark_thread)
        grid = cell_grid(frame.camera)
        resized = cv2.resize(frame.image, (grid.width, grid.height), interpolation=cv2.INTER_AREA)
        depth = cell_depths(frame.depth, grid.pixels_N2) if modality == 'rgbd' and frame.depth is not None else None
        if depth is None or np.count_nonzero(depth) < MIN_DEPTH_CELLS:
            modality, depth = 'rgb', None
        watch.lap('prepare')
        maps_CHW = self.encoder(image_to_tensor(resized).to(self.device, non_blocking=True))[0]
        features = maps_CHW.flatten(1)[:, grid.cells_N.to(self.device)].T
        watch.lap('encoder')
        gated_E1, parts = self._shared_out(maps_CHW, frame, prior, watch)
        attempts = self._attempts(parts, attempt, sight, watch)
        points_AN3, scales_AN = predict([each.sub_map.expert for each in attempts], features)
        watch.lap('expert')
        count = len(attempts)
        cells = cell_problem(points_AN3, scales_AN, torch.from_numpy(grid.bearings_N3)[None].to(self.device).expand(count, -1, -1),
                             STRIDE / grid.focal,
                             None if depth is None else torch.from_numpy(depth)[None].to(self.device).expand(count, -1), self.estimator)
        first = self._first_poses(frame, modality, cells, guidance(scales_AN), attempts, list(parts.values()))
        finished = finished_by_angle(cells, first, self.estimator)
        chances, evidence = self._first_evidence(cells, finished, first, attempts, gated_E1)
        watch.lap('estimator')
        poses = {row: self._by_landmarks(row, attempts, first, finished, modality, evidence) for row in self._promising(chances, attempts)}
        posterior_E1 = posterior(gated_E1, evidence)
        best = max(poses, key=lambda row: posterior_E1[attempts[row].index])
        if any(each.view is not None for each in attempts):
            watch.lap('landmarks')
        pose = poses[best]
        support = self._support(problem_of(cells, best), pose, attempts[best].view is not None, grid)
        numbers = self._evidence(pose.camera_from_map_44, pose.hessian_66, *support, pose.landmarks)
        watch.lap('evidence')
        return self._answer(frame, modality, attempts[best].sub_map, numbers, self._named(posterior_E1), watch)

    def _made_ready(self, index: int) -> SubMap:
        bundle = self.site.read(index)
        positioning = None
        if bundle.landmarks and self.estimator.landmarks:
            positioning = Positioning(bundle.landmarks, self.device, self.estimator, bundle.covariance_factors['landmarks'])
        return SubMap(bundle, bundle.expert.to(self.device), positioning)

    def _has_landmarks(self) -> bool:
        return self.gating is not None or self.sub_maps.get(0).positioning is not None

    def _expected(self, guess: Guess | None, prior: Mapping[str, float] | None) -> int | None:
        """The sub-map that the frame is probably of, before it is looked at."""
        if self.gating is None:
            return 0
        names = [entry.name for entry in self.site.entries]
        if guess is not None:
            if guess.expert in names:
                return names.index(guess.expert)
            return int(np.argmin(self.site.distances(np.linalg.inv(guess.camera_from_map)[:3, 3])))
        likely = None if prior is None else max(names, key=lambda name: prior[name])
        return names.index(likely) if likely is not None and prior[likely] > EXPECTED else None

    def _attempt(self, index: int, sight: Future[Sight] | None) -> Attempt:
        sub_map = self.sub_maps.get(index)
        if sight is None or sub_map.positioning is None:
            return Attempt(index, sub_map, None)
        return Attempt(index, sub_map, self._landmark_thread.submit(lambda: sub_map.positioning.view(sight.result())))

    def _shared_out(self, maps_CHW: Tensor, frame: Frame, prior: Mapping[str, float] | None,
                    watch: Stopwatch) -> tuple[np.ndarray, dict[int, int]]:
        """(E + 1,) probabilities by the gating, and the parts of the budget that sub-maps get, the most probable ones first.

        The host has to know who is asked: a frame of a map of many sub-maps waits for the device here, and before landmarks are matched.
        """
        options = self.gating_options
        if self.gating is None:
            return np.array([1.0, 0.0]), {0: options.parts}
        known = None if prior is None else torch.tensor([prior[entry.name] for entry in self.site.entries], device=self.device)
        gated_E1 = self.gating.probabilities(describe(maps_CHW), known).double().cpu().numpy()
        offset = uniform_draws([_seed(frame)], 1)[0, 0, 0].item()
        parts = parts_of_budget(gated_E1[:-1], options.parts, options.most_experts, offset)
        watch.lap('gating')
        return gated_E1, parts

    def _attempts(self, parts: dict[int, int], expected: Attempt | None, sight: Future[Sight] | None, watch: Stopwatch) -> list[Attempt]:
        """One for each sub-map that gets a part of the budget, in that order."""
        attempts = [expected if expected is not None and expected.index == index else self._attempt(index, sight) for index in parts]
        if self.gating is not None:
            watch.lap('load')
        return [each.matched(self._landmark_thread) if row < MATCHED_EXPERTS else each for row, each in enumerate(attempts)]

    def _track(self, frame: Frame, attempt: Attempt, guess: Guess, prior: Mapping[str, float] | None, watch: Stopwatch) -> Estimate:
        """The pose by the landmarks around a guess alone: no cells, hence none to count."""
        view, positioning = attempt.view.result(), attempt.sub_map.positioning
        watch.lap('keypoints')
        start_44 = torch.from_numpy(guess.camera_from_map @ self.site.entries[attempt.index].site_from_map_44).to(self.device)
        near = positioning.near(view, start_44, guess.radius_px * view.pixel)
        none = torch.zeros_like(near.inliers)
        landmarks = torch.where(near.enough, near.inliers, none)
        evidence = self._evidence(near.pose_44, near.hessian_66, none, none, near.spread, near.rms, landmarks)
        watch.lap('tracking')
        return self._answer(frame, 'rgb', attempt.sub_map, evidence, dict(prior or {}), watch, tracked=True)

    def _first_poses(self, frame: Frame, modality: str, cells: Correspondences, weights_BN: Tensor, attempts: list[Attempt],
                     parts: list[int]) -> Solution:
        """The poses that the cells agree on, and then those that matches to anywhere agree on, where there are any: one batch."""
        problem, parts = searched_by_angle(cells, self.estimator), list(parts)
        for row, attempt in enumerate(attempts):
            if attempt.anywhere is not None:
                problem, weights_BN = stacked(problem, weights_BN, *attempt.anywhere.result())
                parts.append(parts[row])
        count = self.estimator.hypotheses_rgb if modality == 'rgb' else self.estimator.hypotheses_rgbd
        draws_1K3 = uniform_draws([_seed(frame)], count, self.device)
        if len(attempts) == 1:
            return estimate(problem, weights_BN, draws_1K3.expand(len(weights_BN), -1, -1), self.estimator)
        options = replace(self.estimator, refined=max(2, self.estimator.refined // len(attempts)))
        return estimate(problem, weights_BN, draws_of_parts(draws_1K3, parts, self.gating_options.parts), options)

    def _first_evidence(self, cells: Correspondences, finished: Solution, first: Solution, attempts: list[Attempt],
                        gated_E1: np.ndarray) -> tuple[np.ndarray, dict[int, float]]:
        """(A,) chances of the attempts, before landmarks are matched around their poses, and sub-map -> odds by its cells.

        Cells next to each other err together; the factor on their covariance says by how much their likelihood is too sure.
        """
        if self.gating is None:
            return np.ones(1), {}
        scores_A = agreement(cells, finished.camera_from_map_B44[:len(attempts)], self.estimator)
        numbers = torch.cat([scores_A, first.inliers_B[len(attempts):]]).cpu().numpy()
        odds = {each.index: score / max(1.0, each.sub_map.bundle.covariance_factors['rgb']) for each, score in zip(attempts, numbers)}
        matched = [each.index for each in attempts if each.anywhere is not None]
        hints = {index: max(0.0, inliers - MIN_ANYWHERE) for index, inliers in zip(matched, numbers[len(attempts):])}
        likely_E1 = posterior(gated_E1, {index: value + hints.get(index, 0.0) for index, value in odds.items()})
        chances_A = likely_E1[[each.index for each in attempts]]
        return chances_A / chances_A.sum(), odds

    def _promising(self, chances_A: np.ndarray, attempts: list[Attempt]) -> list[int]:
        """The rows whose landmarks are worth looking at, the best first."""
        order = np.argsort(-chances_A, kind='stable')[:MATCHED_EXPERTS]
        return [int(row) for row in order if row == order[0] or chances_A[row] > HOPELESS]

    def _by_landmarks(self, row: int, attempts: list[Attempt], first: Solution, finished: Solution, modality: str,
                      evidence: dict[int, float]) -> Pose:
        """The pose of an attempt, by landmarks where they suffice; adds what they say to the evidence of several."""
        attempt = attempts[row]
        factors = attempt.sub_map.bundle.covariance_factors
        pose_44, hessian_66 = finished.camera_from_map_B44[row], finished.hessian_B66[row] / factors[modality]
        none = torch.zeros_like(hessian_66[0, 0])
        if attempt.view is None:
            return Pose(pose_44, hessian_66, none, none)
        near = self._near_first_poses(attempt, self._anywhere_row(row, attempts), first, pose_44)
        pose = Pose(torch.where(near.enough, near.pose_44, pose_44), torch.where(near.enough, near.hessian_66, hessian_66),
                    torch.where(near.enough, near.inliers, none), torch.where(near.enough, near.score, none))
        if self.gating is not None:
            evidence[attempt.index] += pose.score.item() / max(1.0, factors['landmarks'])
        return pose

    @staticmethod
    def _anywhere_row(row: int, attempts: list[Attempt]) -> int | None:
        """Where in the batch the matches to anywhere of an attempt are."""
        if attempts[row].anywhere is None:
            return None
        return len(attempts) + sum(each.anywhere is not None for each in attempts[:row])

    def _near_first_poses(self, attempt: Attempt, anywhere: int | None, first: Solution, pose_44: Tensor) -> ByLandmarks:
        view, positioning, wide = attempt.view.result(), attempt.sub_map.positioning, self.estimator.landmark_radius_px
        if anywhere is None:
            return positioning.near(view, pose_44, wide * view.pixel)
        # A pose by keypoints is pixels off and wants a narrow search, one by cells decimetres and a wide one.
        precise = first.inliers_B[anywhere] >= MIN_ANYWHERE
        start_44 = torch.where(precise, first.camera_from_map_B44[anywhere], pose_44)
        return positioning.near(view, start_44, torch.where(precise, NEAR_PX, wide) * view.pixel)

    def _support(self, cells: Correspondences, pose: Pose, with_landmarks: bool, grid: CellGrid) -> list[Tensor]:
        """What _cell_evidence says, of a pose by landmarks without the depth of the cells."""
        support = list(self._cell_evidence(cells, pose.camera_from_map_44, grid))
        if not with_landmarks or cells.ranges_BN is None:
            return support
        # Where the view is new, cells meet no depth: a pose by landmarks is not to be refused for it, as it is not without depth.
        across = self._cell_evidence(replace(cells, ranges_BN=None, range_noise_BN=None), pose.camera_from_map_44, grid)
        return [torch.where(pose.landmarks > 0, a, s) for a, s in zip(across[:3], support)] + [support[3]]

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

    def _named(self, posterior_E1: np.ndarray) -> dict[str, float]:
        if self.gating is None:
            return {}
        return dict(zip([*(entry.name for entry in self.site.entries), NONE], posterior_E1.tolist()))

    def _answer(self, frame: Frame, modality: str, sub_map: SubMap, evidence: np.ndarray, named: dict[str, float], watch: Stopwatch,
                tracked: bool = False) -> Estimate:
        map_from_camera, covariance = evidence[:16].reshape(4, 4), evidence[16:52].reshape(6, 6)
        inliers, usable, spread, rms, landmarks = map(float, evidence[52:])
        ratio = inliers / max(1.0, usable)
        entry = sub_map.bundle.entry
        cells_suffice = not tracked and (modality == 'rgbd' or sub_map.positioning is None or not self.integrity.require_landmarks)
        verdict = judge(map_from_camera, covariance, inliers, ratio, spread, landmarks, cells_suffice, tracked, np.array(entry.centre),
                        np.array(entry.extent), self.integrity)
        if named and not tracked:
            verdict = judge_place(verdict, entry.name, named, self.integrity)
        site_from_camera, covariance = in_site(entry.site_from_map_44, map_from_camera, covariance)
        if self.gating is not None and verdict.accepted:
            self._preload_around(site_from_camera[:3, 3])
        return Estimate(frame.stamp_ns, site_from_camera, covariance, verdict, modality, entry.name, inliers, ratio, spread,
                        rms * (frame.camera.fx if modality == 'rgb' else 1.0), dict(watch.stages), landmarks, tracked, named)

    def _preload_around(self, place_3: np.ndarray) -> None:
        distances_E = self.site.distances(place_3)
        near = np.flatnonzero(distances_E < self.gating_options.preload_distance)
        self.sub_maps.preload(near[np.argsort(distances_E[near], kind='stable')].tolist())


def in_site(site_from_map_44: np.ndarray, map_from_camera: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pose and covariance (x, y, z, rotation about fixed axes) of a sub-map in the frame of the site; where that lies counts as known."""
    turn = np.kron(np.eye(2), site_from_map_44[:3, :3])
    return site_from_map_44 @ map_from_camera, turn @ covariance @ turn.T


def _seed(frame: Frame) -> int:
    return frame.stamp_ns & 0x7FFFFFFFFFFFFFFF
