"""From posed frames to a map bundle: encode once into a shuffled buffer, train the head, calibrate on frames held out.

Works from depth, or from RGB and poses alone (then points triangulated over views stand in for depth, see triangulation).
"""
from __future__ import annotations

import signal
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Iterator

import cv2
import numpy as np
import torch

from dsac_ros.config import FinetuningOptions, MappingOptions
from dsac_ros.data.checks import check_consistency
from dsac_ros.data.opening import warning_lines
from dsac_ros.data.source import FrameSource
from dsac_ros.errors import DataError
from dsac_ros.exposure import brightened
from dsac_ros.landmarks.landmarks import Landmarks
from dsac_ros.localizer import resolve_device
from dsac_ros.maps.bundle import MapBundle, check_place, save_map
from dsac_ros.maps.manifest import check_name
from dsac_ros.networks.encoder import shared_encoder
from dsac_ros.networks.gating import prototypes
from dsac_ros.progress import progress_bar
from dsac_ros.records import Frame
from dsac_ros.stopwatch import Stopwatch
from dsac_ros.training.adjustment import triangulate_in_agreement
from dsac_ros.training.budget import Budget, Clock
from dsac_ros.training.buffer import Buffer, Targets, depth_targets, fill, usable_views
from dsac_ros.training.calibration import calibrate
from dsac_ros.training.head import Head, train_head
from dsac_ros.training.merging import merge
from dsac_ros.training.stretches import stretch_of, trust_between_stretches
from dsac_ros.training.triangulation import keypoints_of, triangulated_targets

HELD_OUT_BLOCKS = 3  # runs of consecutive frames, so that a held-out frame is not the twin of a training frame
MIN_FRAMES = 10
LARGEST_SHORT_SIDE = 600  # of a frame in memory [px]: keypoints are looked for in 240 lines, cells in 192; 600 frames of Full HD take 9 GB
COMPARISON_SHARE = 0.15  # of the time that is left when landmarks are made, at the most


def map_source(source: FrameSource, out: str | Path, options: MappingOptions = MappingOptions(), device: str = 'auto',
               name: str = 'room', overwrite: bool = False, quiet: bool = False, clock: Clock = time.monotonic) -> MapBundle:
    """Make a map of what the source shows and write it to the bundle `out`.

    options.minutes are those of `clock`. SIGINT while the head trains ends the training and keeps the best map so far; before that there
    is nothing to keep.
    Raises DataError where frames, poses or depth are missing or inconsistent, MapError where `out` cannot be written.
    """
    out = Path(out)
    check_place(out, overwrite)
    check_name(name)
    budget, watch = Budget(60 * options.minutes, clock), Stopwatch()
    where = resolve_device(device)
    training, held_out, left_out = read_frames(source, options)
    training = [replace(frame, image=brightened(frame.image)) for frame in training]  # as the localizer does with the others
    check_consistency(training[:: max(1, len(training) // 24)], name=str(getattr(source, 'path', 'the data')))
    encoder = shared_encoder(str(where))
    rng = np.random.default_rng(options.seed)
    watch.lap('read')
    encoding_seconds = options.encoding_share * budget.left()
    frames, augmented = usable_views(training, encoder, where, budget.part(encoding_seconds), options.augmented)
    targets: Targets = depth_targets
    landmarks, triangulated, known, agreement = None, 0, {}, {}
    if options.landmarks or options.rgb_only:
        given = frames
        frames, found, agreement = triangulate_in_agreement(
            given, keypoints_of(given, quiet), not options.rgb_only, options.adjust_poses, budget, options.seed, quiet,
            stretch_of(len(given)) if options.landmarks else None)
        triangulated = len(found)
        watch.lap('triangulate')
        merged, landmarks = merge(found, frames, options.landmarks, rng)
        watch.lap('merge')
        targets = triangulated_targets(merged) if options.rgb_only else depth_targets
        if landmarks is not None:
            between = [replace(frame, image=brightened(frame.image)) for frame in held_out]
            trust = trust_between_stretches(found, frames, given, landmarks, between, options.landmarks, rng, where,
                                            budget.part(COMPARISON_SHARE * budget.left()), quiet)
            if trust is not None:
                landmarks = replace(landmarks, common_shift=trust.common_shift, growth=trust.growth)
                known = {'landmarks': trust.factor}
        del found  # with what was triangulated within stretches it is the bulk of the memory
        watch.lap('compare stretches')
    with progress_bar('encode', len(frames) * (1 + augmented), quiet) as progress:
        buffer = fill(frames, encoder, targets, not options.rgb_only, options.capacity, augmented, rng, where,
                      budget.part(encoding_seconds), progress.update)
    points = known_points(buffer)
    watch.lap('encode')
    # Calibration localises the held-out frames with the finished head; a tenth of a second each on a slow core.
    training_seconds = budget.left() - 0.5 * len(held_out) - 2
    # Up to the end, so that a SIGINT during the calibration does not cost the finished head.
    with stop_on_interrupt() as stopped:
        head = train_head(buffer, options, budget.part(training_seconds), stopped, quiet)
        watch.lap('train')
        low, high = np.quantile(points, [0.01, 0.99], axis=0)
        centre, extent = ((low + high) / 2).tolist(), (high - low).tolist()
        factors, errors = calibrate(head.expert, landmarks, held_out, source.map_frame, centre, extent, where, not options.rgb_only,
                                    budget.part(0.0) if stopped() else budget, known)
        watch.lap('calibrate')
        counts = {'frames': len(frames), 'frames_given': len(training), 'held_out_frames': len(held_out), 'triangulated': triangulated,
                  'poses': agreement}
        record = describe(options, head, buffer, landmarks, left_out, errors, counts, budget.spent(), watch, where)
        return save_map(out, source.map_frame, name, head.expert.cpu(), landmarks, factors, centre, extent, record, overwrite,
                        prototypes(buffer.descriptors_FD))


def read_frames(source: FrameSource, options: MappingOptions | FinetuningOptions) -> tuple[list[Frame], list[Frame], Counter[str]]:
    """Posed frames for training and, in blocks spread over the recording, held out; and what was left out, by cause."""
    count = len(source)
    left_out: Counter[str] = Counter()
    frames: list[Frame] = []
    keep = max(1, -(-count // options.max_frames))
    for frame in islice(source, 0, None, keep):
        cause = ('no_pose' if frame.map_from_camera is None
                 else 'no_depth' if not options.rgb_only and (frame.depth is None or not (frame.depth > 0).any()) else None)
        if cause:
            left_out[cause] += 1
        else:
            frames.append(shrunk(frame, LARGEST_SHORT_SIDE))
    if len(frames) < MIN_FRAMES:
        # The larger of the two counts: the source has seen most of what is left out here, and has counted it too.
        why = ', '.join(f'{cause}: {number}' for cause, number in (left_out | source.warnings).items())
        advice = 'check the reference poses' if options.rgb_only else 'check depth and poses, or map with --rgb-only'
        raise DataError('; '.join([f'{getattr(source, "path", "the data")}: {len(frames)} usable frames, at least {MIN_FRAMES} are needed'
                                   f'{f" (left out: {why})" if why else ""}', advice, *warning_lines(source)]))
    held = held_out(len(frames), options.held_out_share)
    return [f for f, h in zip(frames, held) if not h], [f for f, h in zip(frames, held) if h], left_out


def held_out(count: int, share: float) -> list[bool]:
    """Which of so many frames are held out: the middle of each third of the recording."""
    block = max(1, round(share * count / HELD_OUT_BLOCKS))
    every = count / HELD_OUT_BLOCKS
    return [-block / 2 <= i % every - every / 2 < block / 2 for i in range(count)]


def shrunk(frame: Frame, most: int) -> Frame:
    """The same view with a short side of at most so many pixels; depth is that of the nearest one."""
    camera = frame.camera
    scale = most / min(camera.width, camera.height)
    if scale >= 1:
        return frame
    size = (round(camera.width * scale), round(camera.height * scale))
    depth = None if frame.depth is None else cv2.resize(frame.depth, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return replace(frame, image=cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA), depth=depth, camera=camera.resized(*size))


def known_points(buffer: Buffer) -> np.ndarray:
    """Finite scene coordinates of the buffer, (N, 3) float."""
    points = buffer.targets_S3[buffer.targets_S3.isfinite().all(-1)].cpu().numpy()
    if len(points) < 500:
        raise DataError(f'only {len(points)} cells have a known scene coordinate; is the depth empty, does the camera hardly move, or was '
                        'the time too short to triangulate and encode more than a few frames?')
    return points


def describe(options: MappingOptions, head: Head, buffer: Buffer, landmarks: Landmarks | None, left_out: Counter[str],
             errors: dict[str, Any], counts: dict[str, Any], seconds: float, watch: Stopwatch, device: torch.device) -> dict[str, Any]:
    """How the map was made, for people: experts/NAME.yaml."""
    return {'created': datetime.now(timezone.utc).isoformat(timespec='seconds'), 'options': asdict(options), 'device': device.type,
            'seconds': round(seconds, 1), 'stage_seconds': {stage: round(ms / 1e3, 1) for stage, ms in watch.stages.items()},
            **counts, 'left_out': dict(left_out),
            'landmarks': 0 if landmarks is None else len(landmarks.points_L3), 'samples': len(buffer.features_SC),
            'steps': head.steps, 'median_coordinate_error_m': round(head.median_error_m, 4),
            'interrupted': head.interrupted, 'held_out': errors}


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Within, the first SIGINT only raises a flag; a second one interrupts as usual."""
    seen = []

    def remember(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    try:
        previous = signal.signal(signal.SIGINT, remember)
    except ValueError:  # not in the main thread: signals do not come here
        yield lambda: False
        return
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, previous)
