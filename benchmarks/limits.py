"""What limits a map: how far its landmarks would carry if the first pose were right, and whether images of other places are refused.

    python -m benchmarks.limits oracle kitchen.dsacmap $D/kitchen --split val_far
    python -m benchmarks.limits strangers kitchen.dsacmap $D/lounge --every 6
"""
from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dsac_ros.data.opening import open_source
from dsac_ros.errors import ConfigError, DsacError
from dsac_ros.evaluation.metrics import pose_error
from dsac_ros.evaluation.replay import ThinnedSource
from dsac_ros.exposure import brightened
from dsac_ros.landmarks.positioning import NEAR_PX, look
from dsac_ros.localizer import Localizer
from dsac_ros.records import Frame


def oracle(localizer: Localizer, frames: list[Frame]) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks matched around the true pose: errors (F, 2) [m, deg] and soft counts of inliers (F,), zero where they are not enough."""
    positioning = localizer.choice.sub_maps.get(0).positioning
    if positioning is None:
        raise ConfigError('the map has no landmarks')
    errors, counts = [], []
    for frame in frames:
        view = positioning.view(look(replace(frame, image=brightened(frame.image)), localizer.device, with_depth=False))
        near = positioning.near(view, torch.from_numpy(np.linalg.inv(frame.map_from_camera)), NEAR_PX * view.pixel)
        errors.append(pose_error(np.linalg.inv(near.pose_44.numpy()), frame.map_from_camera))
        counts.append(float(near.inliers) if near.enough else 0.0)
    return np.array(errors), np.array(counts)


def print_oracle(localizer: Localizer, frames: list[Frame]) -> None:
    errors, counts = oracle(localizer, frames)
    metres, degrees = errors.T
    print(f'{len(frames)} frames, started at the true pose, {len(localizer.choice.sub_maps.get(0).bundle.landmarks.points_L3)} landmarks: '
          f'median {100 * np.median(metres):.2f} cm {np.median(degrees):.2f} deg, '
          f'within 5 cm 5 deg {100 * ((metres < 0.05) & (degrees < 5)).mean():.1f} %, '
          f'within 2 cm 2 deg {100 * ((metres < 0.02) & (degrees < 2)).mean():.1f} %')
    needed = localizer.integrity.min_landmarks
    print(f'confirmed by {np.median(counts):.0f} landmarks in the median; by the {needed:.0f} that a pose needs in '
          f'{100 * (counts >= needed).mean():.1f} % of the frames')


def print_strangers(localizer: Localizer, frames: list[Frame], modality: str) -> None:
    estimates = [localizer.localize(frame, modality) for frame in frames]
    most = sorted(((e.landmarks, e.inlier_ratio) for e in estimates), reverse=True)[:3]
    print(f'{len(frames)} frames of another place: {sum(e.verdict.accepted for e in estimates)} accepted; most landmarks (share of cells): '
          + ', '.join(f'{landmarks:.0f} ({ratio:.3f})' for landmarks, ratio in most))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.limits', description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=('oracle', 'strangers'))
    parser.add_argument('map', type=Path)
    parser.add_argument('source', type=Path, help='a bag or a data folder')
    parser.add_argument('--split', help='part of a data folder')
    parser.add_argument('--every', type=int, default=1, help='take every N-th frame')
    parser.add_argument('--modality', choices=('rgb', 'rgbd'), default='rgb', help='of strangers')
    options = parser.parse_args(arguments)
    try:
        localizer = Localizer.from_map(options.map, 'cpu')
        is_oracle = options.what == 'oracle'
        source = open_source(options.source, options.split, require_poses=is_oracle, load_depth=options.modality == 'rgbd')
        frames = [frame for frame in ThinnedSource(source, options.every) if not is_oracle or frame.map_from_camera is not None]
        with torch.inference_mode():
            print_oracle(localizer, frames) if is_oracle else print_strangers(localizer, frames, options.modality)
    except DsacError as error:
        print(f'limits: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
