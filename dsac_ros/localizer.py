"""The whole chain on one screen: Frame -> Estimate. The node, the offline replay and the calibration of maps all call this."""
from __future__ import annotations

import gc
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dsac_ros.cell_grid import CellGrid, cell_grid, depths_at
from dsac_ros.config import EstimatorOptions, GatingOptions, IntegrityOptions
from dsac_ros.errors import ConfigError, MapError
from dsac_ros.exposure import brightened
from dsac_ros.geometry import se3
from dsac_ros.landmarks.positioning import NEAR_PX, ByLandmarks, Sight, View, look
from dsac_ros.maps.bundle import MapBundle
from dsac_ros.maps.choice import Attempt, Choice, SubMap
from dsac_ros.maps.site import Site, open_site, site_of
from dsac_ros.networks.encoder import STRIDE, LastInput, image_to_tensor, shared_encoder
from dsac_ros.networks.expert import predict
from dsac_ros.ransac.cells import cell_problem, finished_by_angle, guidance, searched_by_angle
from dsac_ros.ransac.correspondences import Correspondences, stacked
from dsac_ros.ransac.covariance import pose_covariance
from dsac_ros.ransac.estimator import Solution, estimate
from dsac_ros.ransac.evidence import occupied, weighted_rms
from dsac_ros.ransac.experts import added, agreement, draws_of_parts, posterior, problem_of
from dsac_ros.ransac.kernel import soft_inliers
from dsac_ros.ransac.sampling import uniform_draws
from dsac_ros.records import Camera, Estimate, Frame, Guess
from dsac_ros.stopwatch import Stopwatch
from dsac_ros.tracking.integrity import judge, judge_place

MIN_ANYWHERE = 10.0  # inliers among the matches to anywhere, from which on their pose is the better start
MIN_DEPTH_CELLS = 30  # fewer cells with depth than this: the frame is solved as RGB
MATCHED_EXPERTS = 2  # sub-maps whose landmarks are looked at in one frame
HOPELESS = 1e-3  # of the best one's probability, below which the runner-up's landmarks are not looked at


def resolve_device(name: str) -> torch.device:
    """'auto' takes a GPU where there is one. Raises ConfigError for what is no device, and for a GPU that is not there."""
    expected = f'device: expected auto, cpu, cuda or cuda:N, found {name!r}'
    try:
        device = torch.device(('cuda' if torch.cuda.is_available() else 'cpu') if name == 'auto' else name)
    except RuntimeError as error:
        raise ConfigError(expected) from error
    if device.type not in ('cpu', 'cuda'):  # poses are float64, which others do not have
        raise ConfigError(expected)
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
class Seen:
    """What a frame was localised by, kept on the device for who wants to look (dsac_ros.viewing): the sub-map, its keypoints, and its
    cells where they were asked."""

    sub_map: SubMap
    view: View | None
    cells: Correspondences | None = None


@dataclass(frozen=True)
class Pose:
    """Of one attempt: camera_from_map_44 and hessian_66 in the frame of the sub-map, soft count and score of the landmarks, 0 where they
    are not enough, margin of what it started from, misfit and depth_misfit as in ByLandmarks, NaN where the cells have to do."""

    camera_from_map_44: Tensor
    hessian_66: Tensor
    landmarks: Tensor
    score: Tensor
    margin: Tensor
    misfit: Tensor
    depth_misfit: Tensor


@dataclass(frozen=True)
class Search:
    """A frame that is looked for among sub-maps, and what has been found out about them.

    depth_N: [m] of the cells, None without depth. by_image_E1: probabilities by the gating, of none of them last; gated_E1: the same with
    what the frames before say. by_cells, by_landmarks: sub-map -> odds, of those that were tried.
    """

    frame: Frame
    modality: str
    grid: CellGrid
    depth_N: np.ndarray | None
    features_NC: Tensor
    last: LastInput
    sight: Future[Sight] | None
    by_image_E1: np.ndarray
    gated_E1: np.ndarray
    by_cells: dict[int, float] = field(default_factory=dict)
    by_landmarks: dict[int, float] = field(default_factory=dict)

    def posterior(self) -> np.ndarray:
        """(E + 1,) as far as is known."""
        return posterior(self.gated_E1, added(self.by_cells, self.by_landmarks))


class Localizer:
    """A map, ready on its device. Deterministic: the random numbers of a frame come from its stamp."""

    def __init__(self, bundle: MapBundle | Site, device: str = 'auto', estimator: EstimatorOptions = EstimatorOptions(),
                 integrity: IntegrityOptions = IntegrityOptions(), gating: GatingOptions = GatingOptions()) -> None:
        self.device = resolve_device(device)
        self.estimator, self.integrity = estimator, integrity
        self.encoder = shared_encoder(str(self.device))
        site = site_of(bundle) if isinstance(bundle, MapBundle) else bundle
        self.choice, self.map_frame = Choice(site, self.device, estimator, gating), site.frame_id
        self.seen: Seen | None = None  # of the last frame

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
            # Of a blank frame chance says which sub-maps it is tried in: a damaged one is for the frames that need it to tell of.
            with suppress(MapError):
                self.localize(Frame(np.zeros((*shape, 3), np.uint8), camera, stamp, depth), modality)
        self.choice.unreadable.clear()

    def near(self, place_3: np.ndarray) -> dict[str, bool]:
        """Sub-map -> whether it is near a place [m, map frame], and then it is read beforehand; empty in a map of one."""
        return self.choice.preload_around(place_3)

    @torch.inference_mode()
    def localize(self, frame: Frame, modality: str, guess: Guess | None = None, prior: Mapping[str, float] | None = None) -> Estimate:
        """The camera's pose in the map, and whether it may be trusted. 'rgbd' falls back to 'rgb' where there is too little depth.

        Args:
            guess: where landmarks confirm it, the rest of the chain is not run. prior: probability of each sub-map before the frame.

        Raises MapError where a sub-map that is needed cannot be read; from then on frames are localised as if the map did not have it.
        """
        watch = Stopwatch()
        choice, frame = self.choice, replace(frame, image=brightened(frame.image))
        sight = choice.landmark_thread.submit(look, frame, self.device, modality == 'rgbd') if choice.has_landmarks else None
        expected = choice.expected(guess, prior, sight)
        if guess is not None and expected is not None and expected.view is not None:
            tracked = self._track(frame, expected, guess, prior, watch)
            self.seen = Seen(expected.sub_map, expected.view.result())
            if tracked.verdict.accepted and tracked.landmarks >= guess.min_landmarks:
                return tracked
        expected = None if expected is None else choice.matched(expected)
        grid = cell_grid(frame.camera)
        resized = cv2.resize(frame.image, (grid.width, grid.height), interpolation=cv2.INTER_AREA)
        depth = depths_at(frame.depth, grid.pixels_N2) if modality == 'rgbd' and frame.depth is not None else None
        if depth is None or np.count_nonzero(depth) < MIN_DEPTH_CELLS:
            modality, depth = 'rgb', None
        watch.lap('prepare')
        maps_BCHW, last_input = self.encoder.with_last_input(image_to_tensor(resized).to(self.device, non_blocking=True))
        maps_CHW, cells_N = maps_BCHW[0], grid.cells_N.to(self.device)
        features, last = maps_CHW.flatten(1)[:, cells_N].T, LastInput(last_input, cells_N, *maps_CHW.shape[1:])
        watch.lap('encoder')
        by_image_E1, gated_E1, parts = choice.shared_out(maps_CHW, _seed(frame), prior)
        if choice.gating is not None:
            watch.lap('gating')
        return self._searched(Search(frame, modality, grid, depth, features, last, sight, by_image_E1, gated_E1), parts, expected, watch)

    def _searched(self, search: Search, parts: dict[int, int], expected: Attempt | None, watch: Stopwatch) -> Estimate:
        """The first answer that is accepted, or refused for its lens alone; else that of the most probable sub-maps, with what is known of
        all that were tried."""
        found: list[tuple[Estimate, Seen | None]] = []
        tried: set[int] = set()
        while parts and len(found) < self.choice.options.searches:
            answer = self._search(search, parts, expected, watch)
            if answer.verdict.accepted or self._of_another_lens(answer):
                return answer
            found.append((answer, self.seen))
            tried.update(parts)
            parts = self.choice.others(search.posterior(), tried)
        last, (first, self.seen) = found[-1][0], found[0]
        return replace(first, posterior=last.posterior, stage_times_ms=last.stage_times_ms)

    def _of_another_lens(self, answer: Estimate) -> bool:
        """Whether the place is surely found, and only the focal length is another: no other sub-map would agree on more."""
        return answer.verdict.reasons == ('focal_length',) and answer.landmarks >= self.integrity.sure_landmarks

    def _search(self, search: Search, parts: dict[int, int], expected: Attempt | None, watch: Stopwatch) -> Estimate:
        """The pose in the best of these sub-maps, each with its parts of the hypotheses."""
        frame, grid, modality, choice = search.frame, search.grid, search.modality, self.choice
        attempts = choice.attempts(parts, expected, search.sight)
        if choice.gating is not None:
            watch.lap('load')
        points_AN3, scales_AN = predict([each.sub_map.expert for each in attempts], search.features_NC, search.last)
        watch.lap('expert')
        count = len(attempts)
        cells = cell_problem(points_AN3, scales_AN, torch.from_numpy(grid.bearings_N3)[None].to(self.device).expand(count, -1, -1),
                             STRIDE / grid.focal,
                             None if search.depth_N is None else torch.from_numpy(search.depth_N)[None].to(self.device).expand(count, -1),
                             self.estimator)
        first = self._first_poses(frame, modality, cells, guidance(scales_AN), attempts, list(parts.values()))
        finished_A44, hessians_A66 = finished_by_angle(cells, first, self.estimator)
        self._first_evidence(cells, finished_A44, first, attempts, search)
        promising = self._promising(search.posterior(), attempts)
        watch.lap('estimator')
        poses = {row: self._by_landmarks(row, attempts, first, finished_A44[row], hessians_A66[row], modality, search.by_landmarks)
                 for row in promising}
        posterior_E1 = search.posterior()
        best = max(poses, key=lambda row: posterior_E1[attempts[row].index])
        if any(each.view is not None for each in attempts):
            watch.lap('landmarks')
        pose = poses[best]
        chosen, its_cells = attempts[best], problem_of(cells, best)
        support = self._support(its_cells, pose, chosen.view is not None, grid)
        numbers = self._evidence(pose.camera_from_map_44, pose.hessian_66, *support, pose.landmarks, pose.margin, pose.misfit,
                                 pose.depth_misfit, *self._around(chosen, pose))
        watch.lap('evidence')
        self.seen = Seen(chosen.sub_map, None if chosen.view is None else chosen.view.result(), its_cells)
        return self._answer(frame, modality, chosen.sub_map, numbers, choice.named(posterior_E1), watch, search.by_image_E1[chosen.index])

    def _track(self, frame: Frame, attempt: Attempt, guess: Guess, prior: Mapping[str, float] | None, watch: Stopwatch) -> Estimate:
        """The pose by the landmarks around a guess alone: no cells, hence none to count."""
        view, positioning = attempt.view.result(), attempt.sub_map.positioning
        watch.lap('keypoints')
        start_44 = torch.from_numpy(guess.camera_from_map @ attempt.sub_map.bundle.entry.site_from_map_44).to(self.device)
        near = positioning.near(view, start_44, guess.radius_px * view.pixel)
        none = torch.zeros_like(near.inliers)
        landmarks = torch.where(near.enough, near.inliers, none)
        evidence = self._evidence(near.pose_44, near.hessian_66, none, none, near.spread, near.rms, landmarks,
                                  torch.full_like(landmarks, torch.inf), near.misfit, near.depth_misfit,
                                  *[torch.full_like(landmarks, torch.nan)] * 2)
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
        return estimate(problem, weights_BN, draws_of_parts(draws_1K3, parts, self.choice.options.parts), options)

    def _first_evidence(self, cells: Correspondences, finished_A44: Tensor, first: Solution, attempts: list[Attempt],
                        search: Search) -> None:
        """Odds of the sub-maps by their cells, and by the matches of keypoints to anywhere, before landmarks are matched around a pose.

        Cells next to each other err together; the factor on their covariance says by how much their likelihood is too sure.
        """
        if self.choice.gating is None:
            return
        scores_A = agreement(cells, finished_A44, self.estimator)
        numbers = torch.cat([scores_A, first.inliers_B[len(attempts):]]).cpu().tolist()
        for each, score in zip(attempts, numbers):
            search.by_cells[each.index] = score / max(1.0, each.sub_map.bundle.covariance_factors['rgb'])
        matched = [each.index for each in attempts if each.anywhere is not None]
        for index, inliers in zip(matched, numbers[len(attempts):]):
            search.by_landmarks[index] = max(0.0, inliers - MIN_ANYWHERE)

    def _promising(self, posterior_E1: np.ndarray, attempts: list[Attempt]) -> list[int]:
        """The rows whose landmarks are worth looking at, the best first."""
        chances_A = posterior_E1[[each.index for each in attempts]]
        order = np.argsort(-chances_A, kind='stable')[:MATCHED_EXPERTS]
        return [int(row) for row in order if row == order[0] or chances_A[row] > HOPELESS * chances_A[order[0]]]

    def _by_landmarks(self, row: int, attempts: list[Attempt], first: Solution, pose_44: Tensor, hessian_66: Tensor, modality: str,
                      odds: dict[int, float]) -> Pose:
        """The pose of an attempt, by landmarks where they suffice; what they say is kept among the odds by landmarks."""
        attempt = attempts[row]
        hessian_66 = hessian_66 / attempt.sub_map.bundle.covariance_factors[modality]
        none, unknown = torch.zeros_like(hessian_66[0, 0]), torch.full_like(hessian_66[0, 0], torch.nan)
        margin = first.margin_B[row]
        if attempt.view is None:
            return Pose(pose_44, hessian_66, none, none, margin, unknown, unknown)
        anywhere = self._anywhere_row(row, attempts)
        near = self._near_first_poses(attempt, anywhere, first, pose_44)
        if anywhere is not None:
            margin = torch.where(near.enough & (first.inliers_B[anywhere] >= MIN_ANYWHERE), first.margin_B[anywhere], margin)
        pose = Pose(torch.where(near.enough, near.pose_44, pose_44), torch.where(near.enough, near.hessian_66, hessian_66),
                    torch.where(near.enough, near.inliers, none), torch.where(near.enough, near.score, none), margin,
                    torch.where(near.enough, near.misfit, unknown), torch.where(near.enough, near.depth_misfit, unknown))
        if self.choice.gating is not None:
            odds[attempt.index] = max(odds.get(attempt.index, 0.0), pose.score.item() / max(1.0, attempt.sub_map.positioning.usual_factor))
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

    def _around(self, attempt: Attempt, pose: Pose) -> tuple[Tensor, Tensor]:
        """share and focal_misfit as in landmarks.surroundings; NaN where the cells have to do."""
        unknown = torch.full_like(pose.landmarks, torch.nan)
        if attempt.view is None:
            return unknown, unknown
        around = attempt.sub_map.positioning.around(attempt.view.result(), pose.camera_from_map_44)
        return torch.where(pose.landmarks > 0, around.share, unknown), torch.where(pose.landmarks > 0, around.focal_misfit, unknown)

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
        weights_N = torch.where(known_N, seen_N * soft_inliers(white_N.sqrt(), self.estimator.inlier_sigmas), 0.0)
        spread = occupied(torch.from_numpy(grid.pixels_N2).double().to(self.device), weights_N, 0.05 * len(weights_N) / 16)
        return weights_N.sum(), known_N.sum(), spread, weighted_rms(square_N, over_N, weights_N)

    def _evidence(self, pose_44: Tensor, hessian_66: Tensor, *numbers: Tensor) -> np.ndarray:
        """All that goes to the host, in one copy: map_from_camera (16), covariance (36), and the numbers that _answer unpacks."""
        parts = [se3.inverse(pose_44).flatten(), pose_covariance(hessian_66, pose_44).flatten(), torch.stack([n.double() for n in numbers])]
        return torch.cat(parts).cpu().numpy()

    def _answer(self, frame: Frame, modality: str, sub_map: SubMap, evidence: np.ndarray, named: dict[str, float], watch: Stopwatch,
                by_image: float = 1.0, tracked: bool = False) -> Estimate:
        map_from_camera, covariance = evidence[:16].reshape(4, 4), evidence[16:52].reshape(6, 6)
        inliers, usable, spread, rms, landmarks, margin, *by_landmarks = map(float, evidence[52:])
        ratio = inliers / max(1.0, usable)
        entry = sub_map.bundle.entry
        cells_suffice = not tracked and (modality == 'rgbd' or sub_map.positioning is None or not self.integrity.require_landmarks)
        verdict = judge(map_from_camera, covariance, inliers, ratio, spread, landmarks, cells_suffice, tracked, np.array(entry.centre),
                        np.array(entry.extent), self.integrity, margin, *by_landmarks)
        if named and not tracked:
            verdict = judge_place(verdict, entry.name, named, by_image, landmarks, self.integrity)
        site_from_camera, covariance = in_site(entry.site_from_map_44, map_from_camera, covariance)
        if verdict.accepted:
            self.choice.preload_around(site_from_camera[:3, 3])
        return Estimate(frame.stamp_ns, site_from_camera, covariance, verdict, modality, entry.name, inliers, ratio, spread,
                        rms * (frame.camera.fx if modality == 'rgb' else 1.0), dict(watch.stages), landmarks, tracked, margin, named)


def in_site(site_from_map_44: np.ndarray, map_from_camera: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pose and covariance (x, y, z, rotation about fixed axes) of a sub-map in the frame of the site; where that lies counts as known."""
    turn = np.kron(np.eye(2), site_from_map_44[:3, :3])
    return site_from_map_44 @ map_from_camera, turn @ covariance @ turn.T


def _seed(frame: Frame) -> int:
    return frame.stamp_ns & 0x7FFFFFFFFFFFFFFF
