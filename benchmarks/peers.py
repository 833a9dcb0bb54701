"""The estimators of other libraries behind one face, each where it is installed; requirements/benchmarks.txt has the versions, and
benchmarks/build_dsacstar.py builds the extension of DSAC*."""
from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable

import cv2
import numpy as np
import torch

from benchmarks.problems import STRIDE, Problem
from dsac_ros.errors import DsacError

logger = logging.getLogger(__name__)
THRESHOLDS_PX = (10.0, 30.0, 50.0)
THRESHOLD_M = 0.10
DSACSTAR_SETS = 64  # and the two that follow: the defaults of its test script
DSACSTAR_ALPHA = 100.0
DSACSTAR_MAX_ERROR = 100.0
POSELIB = 'PoseLib 100..1000'


@dataclass(frozen=True)
class Estimator:
    """A way from a problem to a pose.

    modality: what it is given, 'rgb', 'rgb+w' (sampling weights too) or 'rgbd'. prepare: Problem -> its own input format, not timed.
    solve: that -> camera_from_map (4, 4), or None for no answer. threshold_px: None where there is none to choose.
    """

    name: str
    modality: str
    prepare: Callable[[Problem], Any]
    solve: Callable[[Any], np.ndarray | None]
    threshold_px: float | None = None


def peers(thresholds_px: tuple[float, ...] = THRESHOLDS_PX) -> list[Estimator]:
    """All that can be imported, each once for every threshold that it has to be given; what is missing is named on the log."""
    found: list[Estimator] = []
    for maker in (_opencv, _poselib, _pycolmap, _open3d, _dsacstar):
        try:
            found += maker(thresholds_px)
        except ImportError as error:
            logger.warning('left out: %s; see requirements/benchmarks.txt and benchmarks/build_dsacstar.py', error)
    return found


def best_first(problem: Problem) -> np.ndarray:
    """Indices by falling weight, for methods that sample progressively."""
    return np.argsort(-problem.weights_N, kind='stable')


def transform(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """(4, 4) from (3, 3) and three numbers of any shape."""
    out = np.eye(4)
    out[:3] = np.column_stack([rotation, np.ravel(translation)])
    return out


def _opencv(thresholds_px: tuple[float, ...]) -> list[Estimator]:
    def prepare(problem: Problem) -> tuple[np.ndarray, ...]:
        return np.ascontiguousarray(problem.points_N3), np.ascontiguousarray(problem.pixels_N2), problem.camera.matrix()

    def solver(method: int, threshold_px: float) -> Callable[[Any], np.ndarray | None]:
        def solve(arrays: tuple[np.ndarray, ...]) -> np.ndarray | None:
            try:
                found, turn, translation, _ = cv2.solvePnPRansac(*arrays, None, iterationsCount=1000, reprojectionError=threshold_px,
                                                                 confidence=0.99, flags=method)
            except cv2.error:  # some of its solvers raise where they find nothing
                return None
            return transform(cv2.Rodrigues(turn)[0], translation) if found else None
        return solve

    methods = {'EPnP': cv2.SOLVEPNP_EPNP, 'P3P': cv2.SOLVEPNP_P3P, 'SQPnP': cv2.SOLVEPNP_SQPNP,
               'USAC_MAGSAC': cv2.USAC_MAGSAC, 'USAC_ACCURATE': cv2.USAC_ACCURATE}
    return [Estimator(f'OpenCV {name}', 'rgb', prepare, solver(method, threshold_px), threshold_px)
            for threshold_px in thresholds_px for name, method in methods.items()]


def _poselib(thresholds_px: tuple[float, ...]) -> list[Estimator]:
    import poselib

    def prepare(problem: Problem) -> tuple[Any, ...]:
        camera = problem.camera
        return problem.pixels_N2, problem.points_N3, {'model': 'PINHOLE', 'width': camera.width, 'height': camera.height,
                                                      'params': [camera.fx, camera.fy, camera.cx, camera.cy]}

    def prepare_sorted(problem: Problem) -> tuple[Any, ...]:
        pixels, points, camera = prepare(problem)
        order = best_first(problem)
        return np.ascontiguousarray(pixels[order]), np.ascontiguousarray(points[order]), camera

    def solver(**options: Any) -> Callable[[Any], np.ndarray | None]:
        def solve(arrays: tuple[Any, ...]) -> np.ndarray | None:
            pose, _ = poselib.estimate_absolute_pose(*arrays, options, {})
            return transform(pose.R, pose.t)
        return solve

    few = {'min_iterations': 100, 'max_iterations': 1000}
    kinds = [(POSELIB, 'rgb', prepare, few), ('PoseLib default', 'rgb', prepare, {}),
             ('PoseLib PROSAC 100..1000', 'rgb+w', prepare_sorted, {**few, 'progressive_sampling': True})]
    return [Estimator(name, modality, prepared, solver(max_reproj_error=threshold_px, **options), threshold_px)
            for threshold_px in thresholds_px for name, modality, prepared, options in kinds]


def _pycolmap(thresholds_px: tuple[float, ...]) -> list[Estimator]:
    import pycolmap

    def prepare(problem: Problem) -> tuple[Any, ...]:
        camera = problem.camera
        return problem.pixels_N2, problem.points_N3, pycolmap.Camera(model='PINHOLE', width=camera.width, height=camera.height,
                                                                     params=[camera.fx, camera.fy, camera.cx, camera.cy])

    def solver(threshold_px: float) -> Callable[[Any], np.ndarray | None]:
        options = pycolmap.AbsolutePoseEstimationOptions()
        options.ransac.max_error = threshold_px
        options.ransac.random_seed = 0

        def solve(arrays: tuple[Any, ...]) -> np.ndarray | None:
            found = pycolmap.estimate_and_refine_absolute_pose(*arrays, options, pycolmap.AbsolutePoseRefinementOptions())
            if found is None:
                return None
            return transform(found['cam_from_world'].rotation.matrix(), found['cam_from_world'].translation)
        return solve

    return [Estimator('pycolmap', 'rgb', prepare, solver(threshold_px), threshold_px) for threshold_px in thresholds_px]


def _open3d(_: tuple[float, ...]) -> list[Estimator]:
    import open3d

    registration, vectors = open3d.pipelines.registration, open3d.utility
    criteria = registration.RANSACConvergenceCriteria(1000, 0.999)

    def cloud(points_N3: np.ndarray) -> Any:
        out = open3d.geometry.PointCloud()
        out.points = vectors.Vector3dVector(points_N3)
        return out

    def prepare(problem: Problem) -> tuple[Any, ...]:
        measured = problem.depths_N > 0
        pairs = np.repeat(np.arange(measured.sum(), dtype=np.int32)[:, None], 2, 1)
        return cloud(problem.points_N3[measured]), cloud(problem.camera_points_N3()[measured]), vectors.Vector2iVector(pairs)

    def solve(clouds: tuple[Any, ...]) -> np.ndarray | None:
        vectors.random.seed(0)
        found = registration.registration_ransac_based_on_correspondence(
            *clouds, THRESHOLD_M, registration.TransformationEstimationPointToPoint(False), 3, [], criteria)
        return np.asarray(found.transformation)

    return [Estimator('Open3D 1000', 'rgbd', prepare, solve)]


def _dsacstar(thresholds_px: tuple[float, ...]) -> list[Estimator]:
    import dsacstar

    def solver(threshold_px: float) -> Callable[[Any], np.ndarray | None]:
        def solve(grid: Grid) -> np.ndarray | None:
            map_from_camera = torch.zeros(4, 4)
            with _silent():
                dsacstar.forward_rgb(grid.points_13HW, map_from_camera, DSACSTAR_SETS, grid.scale * threshold_px,
                                     grid.focal, grid.cx, grid.cy, DSACSTAR_ALPHA, grid.scale * DSACSTAR_MAX_ERROR, STRIDE)
            return np.linalg.inv(map_from_camera.double().numpy())
        return solve

    def solve_with_depth(grid: Grid) -> np.ndarray | None:
        map_from_camera = torch.zeros(4, 4)
        with _silent():
            dsacstar.forward_rgbd(grid.points_13HW, grid.camera_points_13HW, map_from_camera, DSACSTAR_SETS, 100 * THRESHOLD_M,
                                  DSACSTAR_ALPHA, DSACSTAR_MAX_ERROR)
        return np.linalg.inv(map_from_camera.double().numpy())

    name = f'DSAC* {DSACSTAR_SETS}'
    return [*(Estimator(name, 'rgb', grid_of, solver(threshold_px), threshold_px) for threshold_px in thresholds_px),
            Estimator(f'{name} RGB-D', 'rgbd', grid_of, solve_with_depth)]


@dataclass(frozen=True)
class Grid:
    """Scene coordinates where their pixels lie in the image, for methods that take no list and no mask: zero where there is none.

    points_13HW [m, map], camera_points_13HW [m, camera], both float32. focal, cx, cy: of an image in which the centre of a cell is at
    STRIDE (column, row) + STRIDE // 2, and which is `scale` times as large as the real one.
    """

    points_13HW: torch.Tensor
    camera_points_13HW: torch.Tensor
    scale: float
    focal: float
    cx: float
    cy: float


def grid_of(problem: Problem) -> Grid:
    """The cells of a problem on a square grid; where that is not square by up to a fiftieth, by the mean focal length. Raises DsacError for
    others, and for distorted ones."""
    camera, least = problem.camera, problem.pixels_N2.min(0)
    scales = STRIDE / np.array([np.diff(np.unique(axis)).min() for axis in problem.pixels_N2.T])
    cells_N2 = (problem.pixels_N2 - least) * scales / STRIDE
    columns, rows = cells_N2.round().astype(int).T
    fx, fy = camera.fx * scales[0], camera.fy * scales[1]
    if np.abs(cells_N2 - cells_N2.round()).max() > 0.01 or abs(fx / fy - 1) > 0.02:
        raise DsacError('the cells are no square grid of pixels, which DSAC* needs; leave it out, as in --only ours,PoseLib')

    def spread(values_N3: np.ndarray) -> torch.Tensor:
        out = np.zeros((3, rows.max() + 1, columns.max() + 1), np.float32)
        out[:, rows, columns] = values_N3.T
        return torch.from_numpy(out)[None]

    depths = np.zeros_like(problem.points_N3) if problem.depths_N is None else problem.camera_points_N3()
    cx, cy = (np.array([camera.cx, camera.cy]) - least) * scales + STRIDE // 2
    return Grid(spread(problem.points_N3), spread(depths), float(scales.mean()), (fx + fy) / 2, cx, cy)


@contextmanager
def _silent() -> Iterator[None]:
    """DSAC* prints ten lines for every pose, from C++."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
