"""Render a trajectory through a synthetic room as a rosbag2: colour, depth, camera_info, TF and reference poses, all from two seeds."""
from __future__ import annotations

import argparse
import time

from dsac_ros.data.synthetic import SensorOptions, SyntheticSource
from dsac_ros.data.writing import BagWriter
from dsac_ros.progress import progress_bar

HELP = 'render a synthetic room as a bag'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `dsac-ros synth`."""
    sensor = SensorOptions()
    parser.add_argument('--room', type=int, default=1, help='seed of the room')
    parser.add_argument('--rooms', type=int, default=1,
                        help='an even number: a building of so many rooms along a corridor, all of them visited')
    parser.add_argument('--posters', type=int, default=0, help='number of a near-twin of the room: the same with other posters')
    parser.add_argument('--trajectory', type=int, default=1,
                        help='seed of the way through it; another one gives unseen views of the same room')
    parser.add_argument('--frames', type=int, default=300, help='number of frames')
    parser.add_argument('--out', required=True, metavar='BAG', help='folder to write')
    parser.add_argument('--width', type=int, default=640, help='width of the images [px]')
    parser.add_argument('--height', type=int, default=480, help='height of the images [px]')
    parser.add_argument('--rate', type=float, default=10.0,
                        help='frames per second of the stamps; the camera moves at the same speed at any rate')
    parser.add_argument('--storage', choices=('sqlite3', 'mcap'), default='sqlite3', help='storage of the bag')
    parser.add_argument('--compressed', action='store_true', help='write compressed colour and depth')
    parser.add_argument('--overwrite', action='store_true', help='replace an existing bag')
    parser.add_argument('--depth-noise', type=float, default=sensor.depth_noise,
                        help='deviation of the depth at 1 m [m]; grows with its square, opens holes')
    parser.add_argument('--image-noise', type=float, default=sensor.image_noise, help='deviation of the image noise [grey levels]')
    parser.add_argument('--vignette', type=float, default=sensor.vignette, help='share of light lost in the corners')
    parser.add_argument('--exposure-jitter', type=float, default=sensor.exposure_jitter, help='deviation of the gain from frame to frame')
    parser.add_argument('--texels-per-metre', type=float, default=400.0, help='resolution of the textures')
    parser.add_argument('--workers', type=int, default=2, help='threads that render')


def run(options: argparse.Namespace) -> int:
    """Render, write, and print what was written and how fast."""
    begin = time.perf_counter()
    sensor = SensorOptions(options.image_noise, options.vignette, options.exposure_jitter, options.depth_noise)
    with BagWriter(options.out, storage=options.storage, map_frame=SyntheticSource.map_frame, compressed=options.compressed,
                   overwrite=options.overwrite) as bag:
        source = SyntheticSource(options.room, options.trajectory, options.frames, options.width, options.height, options.rate,
                                 sensor=sensor, texels_per_metre=options.texels_per_metre, workers=options.workers,
                                 posters=options.posters, rooms=options.rooms)
        painted, cpu = time.perf_counter(), time.process_time()
        for frame in progress_bar('frames', len(source), iterable=source):
            bag.write(frame)
        seconds, cpu = time.perf_counter() - painted, time.process_time() - cpu
    x, y, z = source.room.size
    place = 'room' if options.rooms == 1 else f'building of {options.rooms} rooms,'
    print(f'{options.out}: {place} {options.room} ({x:.1f} x {y:.1f} x {z:.1f} m, {len(source.room.boxes)} boxes), '
          f'trajectory {options.trajectory}, {len(source)} frames of {options.width} x {options.height}, '
          f'{len(source) / options.rate:.1f} s')
    print(f'room painted in {painted - begin:.1f} s; {len(source) / seconds:.1f} frames/s rendered and written '
          f'({1000 * cpu / len(source):.0f} ms of CPU time per frame)')
    return 0
