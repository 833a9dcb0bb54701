"""Correspondences that a real map predicts: no noise model, no known inliers, only the reference pose."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.problems import Problem
from dsac_ros.config import EstimatorOptions
from dsac_ros.data.source import FrameSource
from dsac_ros.exposure import brightened
from dsac_ros.geometry.camera import cell_centres, normalised
from dsac_ros.maps.bundle import load_map
from dsac_ros.networks.encoder import STRIDE, LastInput, image_to_tensor, input_size, shared_encoder
from dsac_ros.records import Camera, Frame


class Predictor:
    """A map, without its landmarks: Frame -> Problem of all cells of the frame, with the noise that the localizer believes in."""

    def __init__(self, map_path: Path) -> None:
        self.encoder, self.expert = shared_encoder('cpu'), load_map(map_path).expert

    @torch.inference_mode()
    def __call__(self, frame: Frame) -> Problem:
        width, height = input_size(frame.camera.width, frame.camera.height)
        resized = cv2.resize(brightened(frame.image), (width, height), interpolation=cv2.INTER_AREA)
        maps_BCHW, last_input = self.encoder.with_last_input(image_to_tensor(resized))
        features_NC = maps_BCHW[0].flatten(1).T
        last = LastInput(last_input, torch.arange(len(features_NC)), *maps_BCHW.shape[2:])
        points_N3, scales_N, _ = self.expert(features_NC, last)
        camera = frame.camera
        cells_N2 = (cell_centres(width, height, STRIDE).reshape(-1, 2) + 0.5) * [camera.width / width, camera.height / height] - 0.5
        # The peers know pinholes only: they get the pixels of one that sees along the same rays.
        pinhole = Camera(camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy)
        pixels_N2 = normalised(camera, cells_N2) * [camera.fx, camera.fy] + [camera.cx, camera.cy]
        options = EstimatorOptions()
        depths_N = depth_noise_N = None
        if frame.depth is not None:
            columns, rows = np.rint(cells_N2).astype(int).T
            depths_N = np.nan_to_num(frame.depth[rows, columns], nan=0, posinf=0).astype(float)
            depth_noise_N = options.depth_noise_floor + options.depth_noise * depths_N ** 2
        scales_N = options.scale_factor * scales_N.double().numpy()
        return Problem(pinhole, pixels_N2, points_N3.double().numpy(), depths_N, depth_noise_N, 1 / scales_N, scales_N,
                       np.linalg.inv(frame.map_from_camera), pixel_noise_px=options.pixel_noise * STRIDE * camera.width / width,
                       scales_known=True)


def predicted_problems(map_path: Path, source: FrameSource, frames: list[int]) -> Iterator[tuple[int, Problem, dict[str, float]]]:
    """(number of the frame, problem, nothing for reference) of the chosen frames that have a reference pose."""
    predict = Predictor(map_path)
    for number, frame in enumerate(source):
        if number in frames and frame.map_from_camera is not None:
            yield number, predict(frame), {}
