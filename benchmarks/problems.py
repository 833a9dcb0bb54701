"""Correspondence problems on the geometry of real frames: true scene coordinates, noise on them, a share of them swapped for outliers.

A set is one .npz file: depth (F, H, W) [m], pose (F, 4, 4) map_from_camera, xyz (S, O, F, H, W, 3) [m, map], inlier and guide
(O, F, H, W), K, pix, image_wh, sigmas_cm (S,), outliers (O,), stride, seed; `../shared/peers_pnp.py run --problems` reads it too.
The random numbers are the same in all cells of noise x outliers, so that cells differ by what their names say and by nothing else.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator

import numpy as np
from scipy.ndimage import gaussian_filter

from dsac_ros.data.source import FrameSource
from dsac_ros.errors import DataError
from dsac_ros.records import Camera

NOISES_CM = (1.0, 2.0, 5.0)
OUTLIERS = (0.2, 0.5, 0.8, 0.9, 0.95)
STRIDE = 8
MAX_DEPTH = 10.0  # metres: beyond, a depth camera guesses
TRUNCATE = 4.0  # radius of the smoothing kernel, in standard deviations


@dataclass(frozen=True)
class NoiseModel:
    """Gaussian noise of scene coordinates, of unit variance along each axis across the viewing ray.

    shared: share of the variance that neighbouring cells have in common, through white noise smoothed over `reach` cells (standard
    deviation). stretch: factor on the noise along the viewing ray.
    """

    name: str
    shared: float = 0.0
    reach: float = 1.0
    stretch: float = 1.0

    @property
    def margin(self) -> int:
        """Cells around the grid that reach into it."""
        return int(TRUNCATE * self.reach + 0.5)

    def smooth(self, padded: np.ndarray) -> np.ndarray:
        """Fields (..., H + 2 margin, W + 2 margin) through the filter that makes unit white noise correlated with unit variance."""
        impulse = np.zeros((4 * self.margin + 1,) * 2)
        impulse[2 * self.margin, 2 * self.margin] = 1
        gain = np.linalg.norm(gaussian_filter(impulse, self.reach, truncate=TRUNCATE))
        return gaussian_filter(padded, self.reach, axes=(-2, -1), truncate=TRUNCATE, mode='constant') / gain


IID = NoiseModel('iid')
# As a network's: 81 pixels of image are shared between neighbours, so that 4800 cells are worth some 4800 / 25, and depth is the hard part.
CORRELATED = NoiseModel('correlated', shared=0.5, reach=2.0, stretch=3.0)
NOISE_MODELS = {model.name: model for model in (IID, CORRELATED)}


@dataclass(frozen=True)
class Problem:
    """N correspondences of one image, numpy float64.

    camera: pinhole, without distortion. pixels_N2; pixel_noise_px: their standard deviation. points_N3: [m, map], noisy or wrong.
    depths_N: [m] along the optical axis, 0 where there is none; None: RGB. depth_noise_N: its standard deviation [m]. weights_N: sampling
    weights. scales_N: standard deviation of the points along an axis, up to an unknown factor, or [m] where scales_known.
    camera_from_map: the truth, (4, 4). inliers_N: the truth; None where nobody knows it.
    """

    camera: Camera
    pixels_N2: np.ndarray
    points_N3: np.ndarray
    depths_N: np.ndarray | None
    depth_noise_N: np.ndarray | None
    weights_N: np.ndarray
    scales_N: np.ndarray
    camera_from_map: np.ndarray
    inliers_N: np.ndarray | None = None
    pixel_noise_px: float = 0.5
    scales_known: bool = False

    def rays_N3(self) -> np.ndarray:
        """(x/z, y/z, 1)."""
        across = (self.pixels_N2 - [self.camera.cx, self.camera.cy]) / [self.camera.fx, self.camera.fy]
        return np.concatenate([across, np.ones_like(across[:, :1])], 1)

    def bearings_N3(self) -> np.ndarray:
        """Unit viewing rays."""
        rays = self.rays_N3()
        return rays / np.linalg.norm(rays, axis=1, keepdims=True)

    def camera_points_N3(self) -> np.ndarray:
        """[m, camera frame], from depth."""
        return self.rays_N3() * self.depths_N[:, None]

    def true_inliers(self) -> Problem:
        """The same problem, told which correspondences are right."""
        keep = self.inliers_N
        per_point = ('pixels_N2', 'points_N3', 'depths_N', 'depth_noise_N', 'weights_N', 'scales_N', 'inliers_N')
        return replace(self, **{name: getattr(self, name)[keep] for name in per_point})


class ProblemSet:
    """A set in memory. noises_cm, outliers: its cells; len(): frames."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self._arrays: dict[str, Any] = dict(file)
        self.noise = NOISE_MODELS[path.stem]
        self.noises_cm, self.outliers = self._arrays['sigmas_cm'].tolist(), self._arrays['outliers'].tolist()
        k, (width, height) = self._arrays['K'], self._arrays['image_wh'].tolist()
        self.camera = Camera(width, height, k[0, 0], k[1, 1], k[0, 2], k[1, 2])

    def __len__(self) -> int:
        return len(self._arrays['depth'])

    def cells(self, stride: int) -> int:
        """Nominal number of correspondences of a frame, cells without depth included."""
        return self._arrays['depth'][0, ::stride // STRIDE, ::stride // STRIDE].size

    def problem(self, noise: int, outlier: int, frame: int, stride: int = STRIDE) -> Problem:
        """One frame of the cell (index of noises_cm, index of outliers), without the grid cells that have no depth.

        stride: of the cells in pixels; a multiple of STRIDE thins them.
        """
        thin = (slice(None, None, stride // STRIDE),) * 2
        depth_HW = self._arrays['depth'][frame][thin]
        pixels, points, weights, inliers, depths = (
            array[thin][depth_HW > 0] for array in (
                self._arrays['pix'], self._arrays['xyz'][noise, outlier, frame], self._arrays['guide'][outlier, frame],
                self._arrays['inlier'][outlier, frame], self._arrays['depth'][frame]))
        # Depth is exact here, as the ground truth comes from it; all noise is in the points.
        return Problem(self.camera, pixels.astype(float), points.astype(float), depths.astype(float), np.zeros(len(points)),
                       weights.astype(float), np.ones(len(points)), np.linalg.inv(self._arrays['pose'][frame]), inliers)


@dataclass(frozen=True)
class Scene:
    """What F frames truly see, cell by cell: depths_FHW [m], 0 where there is none; points_FHW3 [m, map]; map_from_camera_F44."""

    camera: Camera
    pixels_HW2: np.ndarray
    depths_FHW: np.ndarray
    points_FHW3: np.ndarray
    rays_FHW3: np.ndarray
    map_from_camera_F44: np.ndarray


def make_sets(source: FrameSource, folder: Path, frames: int, seed: int) -> list[Path]:
    """Write one .npz file for each noise model, of `frames` frames spread over the source. Raises DataError without depth or poses."""
    scene = read_scene(source, frames)
    folder.mkdir(parents=True, exist_ok=True)
    return [_write(folder / f'{noise.name}.npz', scene, noise, seed) for noise in NOISE_MODELS.values()]


def read_scene(source: FrameSource, frames: int) -> Scene:
    """The depth of the frames at the centre pixel of each cell, moved into the map. Raises DataError."""
    chosen = set(np.linspace(0, len(source) - 1, frames).round().astype(int).tolist())
    kept = [frame for index, frame in enumerate(source)
            if index in chosen and frame.depth is not None and frame.map_from_camera is not None]
    if len(kept) < 2:
        raise DataError('expected at least two frames with depth and reference pose: outliers are coordinates of another frame')
    camera = kept[0].camera
    if any(camera.distortion):
        raise DataError(f'expected undistorted images, since the peers take pinhole pixels; found {camera.distortion_model}')
    # A pixel that has its own depth, so that ray and depth belong together to the last digit.
    rows, columns = (np.arange(STRIDE // 2, size - size % STRIDE, STRIDE) for size in (camera.height, camera.width))
    depths = np.stack([np.nan_to_num(frame.depth[np.ix_(rows, columns)], nan=0, posinf=0).astype(float) for frame in kept])
    depths[depths > MAX_DEPTH] = 0
    pixels = np.stack(np.meshgrid(columns, rows), -1).astype(float)
    rays = np.concatenate([(pixels - [camera.cx, camera.cy]) / [camera.fx, camera.fy], np.ones_like(pixels[..., :1])], -1)
    poses = np.stack([frame.map_from_camera for frame in kept])
    rays_FHW3 = np.einsum('fij,hwj->fhwi', poses[:, :3, :3], rays)
    return Scene(camera, pixels, depths, rays_FHW3 * depths[..., None] + poses[:, None, None, :3, 3], rays_FHW3, poses)


def _write(path: Path, scene: Scene, noise: NoiseModel, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    wrong_FHW3 = elsewhere(rng, scene)
    valid, rank = scene.depths_FHW > 0, rng.random(scene.depths_FHW.shape)
    guide_in, guide_out = rng.beta(4, 2, valid.shape), rng.beta(2, 4, valid.shape)
    unit_FHW3 = draw_noise(rng, scene, noise)  # last: all before it is then the same for every model of noise
    inlier = np.stack([valid & ~_first(np.where(valid, rank, 2), share) for share in OUTLIERS])
    clean = np.where(inlier[..., None], scene.points_FHW3, wrong_FHW3)
    xyz = np.stack([(clean + cm / 100 * unit_FHW3) * valid[..., None] for cm in NOISES_CM]).astype(np.float32)
    camera = scene.camera
    np.savez(path, depth=scene.depths_FHW.astype(np.float32), pose=scene.map_from_camera_F44, xyz=xyz, inlier=inlier,
             guide=(np.where(inlier, guide_in, guide_out) * valid).astype(np.float32), K=camera.matrix(), pix=scene.pixels_HW2,
             image_wh=np.array([camera.width, camera.height]), sigmas_cm=np.array(NOISES_CM), outliers=np.array(OUTLIERS), stride=STRIDE,
             seed=seed)
    return path


def draw_noise(rng: np.random.Generator, scene: Scene, noise: NoiseModel) -> np.ndarray:
    """(F, H, W, 3), of unit variance across the viewing ray."""
    frames, height, width = scene.depths_FHW.shape
    own = rng.standard_normal((frames, height, width, 3))
    if noise.shared:
        margin = noise.margin
        white = rng.standard_normal((frames, 3, height + 2 * margin, width + 2 * margin))
        common = np.moveaxis(noise.smooth(white), 1, -1)[:, margin:-margin, margin:-margin]
        own = np.sqrt(1 - noise.shared) * own + np.sqrt(noise.shared) * common
    bearings = scene.rays_FHW3 / np.linalg.norm(scene.rays_FHW3, axis=-1, keepdims=True)
    return own + (noise.stretch - 1) * (own * bearings).sum(-1, keepdims=True) * bearings


def elsewhere(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """(F, H, W, 3): for every cell what a random cell of a random other frame sees; outliers that lie on surfaces, as real ones do."""
    frames = len(scene.depths_FHW)
    seen = [points[depths > 0] for points, depths in zip(scene.points_FHW3, scene.depths_FHW)]
    counts = np.array([len(points) for points in seen])
    other = (np.arange(frames)[:, None, None] + rng.integers(1, frames, scene.depths_FHW.shape)) % frames
    within = (rng.random(other.shape) * counts[other]).astype(int)
    return np.concatenate(seen)[(np.cumsum(counts) - counts)[other] + within]


def _first(rank_FHW: np.ndarray, share: float) -> np.ndarray:
    """Mask of the lowest ranks of each frame: exactly this share of its ranks below 1, and nested from share to share."""
    order = rank_FHW.reshape(len(rank_FHW), -1).argsort(1).argsort(1).reshape(rank_FHW.shape)
    return order < np.round(share * (rank_FHW < 1).sum((1, 2)))[:, None, None]


def spread_frames(count: int, wanted: int) -> Iterator[int]:
    """`wanted` of `count` frames from all over the recording, in a fixed shuffled order: whoever stops early has seen all of it too."""
    chosen = np.unique(np.linspace(0, count - 1, min(wanted or count, count)).round().astype(int))
    return iter(np.random.default_rng(1).permutation(chosen).tolist())
