"""A classical localiser built from pip parts, beside ours in one run: SIFT of key frames in space, VLAD retrieval, PoseLib.

    python -m benchmarks.structure_based kitchen.dsacmap $D/kitchen --train train --test val_near val_far

Key frames are all training frames, kept whole: 1200 RootSIFT keypoints at full size each, lifted by their own depth, or where our map was
made of RGB alone triangulated by pycolmap over up to 16 views. A query is compared with the key frames whose VLAD (Jegou et al. 2010) is
most similar, never with those that the true pose would choose.
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from scipy.cluster.vq import kmeans2

from dsac_ros.data.opening import open_source
from dsac_ros.errors import DataError, DsacError
from dsac_ros.evaluation.metrics import pose_error
from dsac_ros.geometry.camera import homogeneous
from dsac_ros.landmarks.keypoints import Effort, Keypoints, detect
from dsac_ros.localizer import Localizer
from dsac_ros.records import Frame
from dsac_ros.training.triangulation import choose_partners, keypoint_depths, match_epipolar

KEYPOINTS = 1200
KEY_FRAMES = 8  # that a query is compared with
WORDS = 32  # of the VLAD vocabulary
RATIO = 0.8
THRESHOLD_PX = 6.0
MIN_INLIERS = 15
MIN_VIEWS, MIN_PARALLAX_DEG, MAX_ANGLE_PX = 3, 1.5, 4.0  # of a triangulated point; COLMAP's own limits of parallax and error


@dataclass(frozen=True)
class KeyFrame:
    """points_M3 [m, map] with descriptors_MD; vlad of the whole frame."""

    points_M3: np.ndarray
    descriptors_MD: np.ndarray
    vlad: np.ndarray


class StructureMap:
    """Key frames and the vocabulary of their VLADs."""

    def __init__(self, frames: list[Frame], rgb_only: bool = False) -> None:
        keypoints = [full_size(frame) for frame in frames]
        places = triangulated(frames, keypoints) if rgb_only else [lifted(frame, k) for frame, k in zip(frames, keypoints)]
        sample = np.concatenate([k.descriptors_MD[::10] for k in keypoints])
        self.words = kmeans2(sample, WORDS, minit='++', seed=0)[0]
        self.key_frames = [self._key_frame(points, k) for points, k in zip(places, keypoints)]
        self.vlads = np.stack([key.vlad for key in self.key_frames])

    def _key_frame(self, points_M3: np.ndarray, keypoints: Keypoints) -> KeyFrame:
        known = np.isfinite(points_M3).all(1)
        return KeyFrame(points_M3[known], keypoints.descriptors_MD[known], self._vlad(keypoints.descriptors_MD))

    def _vlad(self, descriptors_MD: np.ndarray) -> np.ndarray:
        nearest = ((descriptors_MD[:, None] - self.words) ** 2).sum(-1).argmin(1)
        total = np.stack([(descriptors_MD[nearest == k] - word).sum(0) for k, word in enumerate(self.words)])
        total = np.sign(total) * np.sqrt(np.abs(total))
        return (total / max(1e-9, np.linalg.norm(total))).ravel()

    @property
    def megabytes(self) -> float:
        """With descriptors as bytes and coordinates as float32; VLADs as float32."""
        return (sum(len(key.points_M3) for key in self.key_frames) * (128 + 12) + self.vlads.size * 4) / 1e6

    def localize(self, frame: Frame) -> np.ndarray | None:
        """map_from_camera (4, 4), or None where too few matches agree."""
        import poselib

        keypoints = full_size(frame)
        nearest = np.argsort(-self.vlads @ self._vlad(keypoints.descriptors_MD))[:KEY_FRAMES]
        pixels, points = [], []
        for key in (self.key_frames[i] for i in nearest):
            first, second = mutual(keypoints.descriptors_MD, key.descriptors_MD)
            pixels.append(pinhole_pixels(frame, keypoints)[first])
            points.append(key.points_M3[second])
        pixels_N2, points_N3 = np.concatenate(pixels), np.concatenate(points)
        if len(pixels_N2) < MIN_INLIERS:
            return None
        camera = frame.camera
        pinhole = {'model': 'PINHOLE', 'width': camera.width, 'height': camera.height,
                   'params': [camera.fx, camera.fy, camera.cx, camera.cy]}
        pose, info = poselib.estimate_absolute_pose(pixels_N2, points_N3, pinhole, {'max_reproj_error': THRESHOLD_PX, 'seed': 0}, {})
        if info['num_inliers'] < MIN_INLIERS:
            return None
        camera_from_map = np.eye(4)
        camera_from_map[:3, :3], camera_from_map[:3, 3] = pose.R, pose.t
        return np.linalg.inv(camera_from_map)


def full_size(frame: Frame) -> Keypoints:
    return detect(frame.image, frame.camera, Effort(min(frame.camera.width, frame.camera.height), KEYPOINTS))


def pinhole_pixels(frame: Frame, keypoints: Keypoints) -> np.ndarray:
    """(M, 2): where a camera without distortion would see them."""
    return keypoints.rays_M2 * [frame.camera.fx, frame.camera.fy] + [frame.camera.cx, frame.camera.cy]


def lifted(frame: Frame, keypoints: Keypoints) -> np.ndarray:
    """Points (M, 3) [m, map] of the keypoints by the frame's own depth, NaN where there is none."""
    points = homogeneous(keypoints.rays_M2) * keypoint_depths(frame, keypoints.pixels_M2)[:, None]
    return points @ frame.map_from_camera[:3, :3].T + frame.map_from_camera[:3, 3]


def triangulated(frames: list[Frame], keypoints: list[Keypoints]) -> list[np.ndarray]:
    """As lifted, of all frames and without depth: matches along epipolar lines, then pycolmap's LO-RANSAC over the views of each point."""
    import pycolmap

    cameras = [pycolmap.Camera(model='PINHOLE', width=f.camera.width, height=f.camera.height,
                               params=[f.camera.fx, f.camera.fy, f.camera.cx, f.camera.cy]) for f in frames]
    poses = np.stack([frame.map_from_camera for frame in frames])
    towards = [pycolmap.Rigid3d(pose[:3]) for pose in np.linalg.inv(poses)]
    pixels = [pinhole_pixels(frame, k) for frame, k in zip(frames, keypoints)]
    options = pycolmap.EstimateTriangulationOptions(min_tri_angle=np.radians(MIN_PARALLAX_DEG))
    options.ransac.max_error, options.ransac.random_seed = MAX_ANGLE_PX / frames[0].camera.fx, 0
    places = []
    for index, own in enumerate(keypoints):
        views = [index, *choose_partners(index, poses)]
        matches = [np.arange(len(own.pixels_M2))] + [
            match_epipolar(own, keypoints[v], np.linalg.inv(poses[v]) @ poses[index], frames[index].camera.fx) for v in views[1:]]
        points_M3 = np.full((len(own.pixels_M2), 3), np.nan)
        for row, found in enumerate(np.stack(matches, 1)):
            seen = [(view, at) for view, at in zip(views, found) if at >= 0]
            if len(seen) >= MIN_VIEWS:
                answer = pycolmap.estimate_triangulation(np.array([pixels[v][at] for v, at in seen]), [towards[v] for v, _ in seen],
                                                         [cameras[v] for v, _ in seen], options)
                if answer and answer['inliers'][0] and answer['inliers'].sum() >= MIN_VIEWS:
                    points_M3[row] = answer['xyz']
        places.append(points_M3)
    return places


def mutual(first_MD: np.ndarray, second_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of mutual nearest neighbours that pass the ratio test."""
    if len(first_MD) < 2 or len(second_ND) < 2:
        return np.zeros(0, int), np.zeros(0, int)
    pairs = cv2.BFMatcher().knnMatch(first_MD, second_ND, k=2)
    back = (first_MD @ second_ND.T).argmax(0)
    good = [(m.queryIdx, m.trainIdx) for m, n in pairs if m.distance < RATIO * n.distance and back[m.trainIdx] == m.queryIdx]
    first, second = np.array(good, int).reshape(-1, 2).T
    return first, second


def evaluate(localize: Callable[[Frame], np.ndarray | None], frames: list[Frame]) -> str:
    """One row of the table: a frame without an answer is an infinite error."""
    errors, times = [], []
    for frame in frames:
        start = time.perf_counter()
        pose = localize(frame)
        times.append(1e3 * (time.perf_counter() - start))
        errors.append((np.inf, 180.0) if pose is None else pose_error(pose, frame.map_from_camera))
    metres, degrees = np.array(errors).T
    shares = [100 * ((metres < limit) & (degrees < angle)).mean() for limit, angle in ((0.05, 5), (0.02, 2), (0.01, 1))]
    false = int((np.isfinite(metres) & ((metres > 0.5) | (degrees > 5))).sum())
    return (f'{100 * np.median(metres):.2f} cm {np.median(degrees):.2f} deg | {shares[0]:.1f} | {shares[1]:.1f} | {shares[2]:.1f} | '
            f'{100 * np.isfinite(metres).mean():.1f} | {false} | {np.median(times):.0f}')


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.structure_based', description=__doc__.splitlines()[0])
    parser.add_argument('map', type=Path, help='ours, of the same training frames')
    parser.add_argument('source', type=Path, help='a data folder, with depth unless our map was made of RGB alone')
    parser.add_argument('--train', default='train')
    parser.add_argument('--test', nargs='+', default=['val'])
    parser.add_argument('--every', type=int, default=1, help='test on every N-th frame')
    options = parser.parse_args(arguments)
    try:
        localizer = Localizer.from_map(options.map, 'cpu')
        start = time.perf_counter()
        rgb_only = bool(localizer.choice.sub_maps.get(0).bundle.training.get('options', {}).get('rgb_only'))
        training = [frame for frame in open_source(options.source, options.train, require_poses=True, load_depth=not rgb_only)
                    if frame.map_from_camera is not None and (rgb_only or frame.depth is not None)]
        if not training:
            raise DataError(f'{options.source}: no frame of {options.train} has depth, which lifts the keypoints')
        structure = StructureMap(training, rgb_only)
        seconds = time.perf_counter() - start
        size = sum(file.stat().st_size for file in options.map.rglob('*') if file.is_file()) / 1e6
        made = localizer.choice.sub_maps.get(0).bundle.training.get('seconds', float('nan'))
        print(f'structure-based, points {"triangulated" if rgb_only else "by depth"}: {len(training)} key frames, {seconds:.0f} s, '
              f'{structure.megabytes:.1f} MB; our map: {made:.0f} s, {size:.1f} MB')

        def ours(frame: Frame) -> np.ndarray | None:
            estimate = localizer.localize(frame, 'rgb')
            return estimate.map_from_camera if estimate.verdict.accepted else None

        print('| split, localiser | median | within 5 cm 5 deg % | 2 cm 2 deg | 1 cm 1 deg | answered | false accepts | ms a query |\n'
              '|---|---|---|---|---|---|---|---|')
        for split in options.test:
            source = open_source(options.source, split, require_poses=True, load_depth=False)
            frames = [frame for frame in source if frame.map_from_camera is not None][:: options.every]
            localizer.warm_up(frames[0].camera, 'rgb')
            print(f'| {split}, ours | {evaluate(ours, frames)} |')
            print(f'| {split}, structure-based | {evaluate(structure.localize, frames)} |', flush=True)
    except DsacError as error:
        print(f'structure_based: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
