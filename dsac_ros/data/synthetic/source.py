"""Frames of a synthetic room: a FrameSource from two seeds."""
from __future__ import annotations

from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Iterator

import numpy as np

from dsac_ros.data.synthetic.building import Building, build_building
from dsac_ros.data.synthetic.path import hand_held
from dsac_ros.data.synthetic.rendering import Renderer
from dsac_ros.data.synthetic.room import Room, build_room
from dsac_ros.data.synthetic.sensor import Sensor, SensorOptions
from dsac_ros.errors import ConfigError
from dsac_ros.records import Camera, Frame

FIRST_STAMP_NS = 1_000_000_000_000  # not zero, which ROS takes for no stamp


@lru_cache(maxsize=2)
def furnished(seed: int, texels_per_metre: float, posters: int = 0, rooms: int = 1) -> tuple[Room | Building, Renderer]:
    """The room or building of a seed, painted; kept, since painting takes seconds and several trajectories share a room."""
    place = build_room(seed, posters) if rooms == 1 else build_building(seed, rooms)
    return place, Renderer(place, texels_per_metre)


def default_camera(width: int, height: int) -> Camera:
    """A pinhole that sees 63 degrees across, as common RGB-D cameras do."""
    return Camera(width, height, 0.82 * width, 0.82 * width, (width - 1) / 2, (height - 1) / 2)


class SyntheticSource:
    """A trajectory through the furnished room of a seed: RGB, exact registered depth (or noisy) and exact poses.

    Args:
        room_seed: which room. trajectory_seed: which way through it; another one gives unseen views of the same room.
        frames: how many. width, height: of the image [px]. rate_hz: of the stamps.
        camera: any pinhole of that size; by default 63 degrees across.
        sensor: effects on image and depth; SensorOptions(0, 0, 0, 0) has none.
        texels_per_metre: resolution of the textures. workers: threads that render.
        posters: 0, or the number of a near-twin of the room: the same but for its posters and framed pictures.
        rooms: more than one make a building, rooms on both sides of a corridor, and the trajectory a way through all of them.

    Raises ConfigError where a number is out of range.
    """

    map_frame = 'map'

    def __init__(self, room_seed: int, trajectory_seed: int, frames: int, width: int = 640, height: int = 480, rate_hz: float = 10.0,
                 camera: Camera | None = None, sensor: SensorOptions = SensorOptions(), texels_per_metre: float = 400.0,
                 workers: int = 2, posters: int = 0, rooms: int = 1) -> None:
        for name, value, low in (('room', room_seed, 0), ('trajectory', trajectory_seed, 0), ('frames', frames, 1), ('width', width, 16),
                                 ('height', height, 16), ('rate', rate_hz, 0.1), ('texels per metre', texels_per_metre, 10),
                                 ('workers', workers, 1), ('posters', posters, 0), ('rooms', rooms, 1)):
            if not low <= value < 2 ** 31:
                raise ConfigError(f'{name}: expected at least {low}, found {value}')
        if rooms > 1 and posters:
            raise ConfigError('posters: buildings have no near-twins')
        if min(sensor.image_noise, sensor.vignette, sensor.exposure_jitter, sensor.depth_noise) < 0:
            raise ConfigError(f'sensor effects must not be negative: {sensor}')
        self.camera = default_camera(width, height) if camera is None else camera
        if (self.camera.width, self.camera.height) != (width, height) or self.camera.distortion_model != 'none':
            raise ConfigError(f'camera: expected a pinhole of {width} x {height} pixels, found {self.camera}')
        self.warnings: Counter[str] = Counter()
        self.room, self._renderer = furnished(room_seed, texels_per_metre, posters, rooms)
        self.poses = hand_held(self.room, trajectory_seed, frames, rate_hz)
        self._stamps_ns = FIRST_STAMP_NS + np.rint(np.arange(frames) * 1e9 / rate_hz).astype(np.int64)
        self._seed, self._sensor, self._workers = [room_seed, trajectory_seed], Sensor(self.camera, sensor), workers

    def __len__(self) -> int:
        return len(self.poses)

    def __iter__(self) -> Iterator[Frame]:
        with ThreadPoolExecutor(self._workers) as pool:
            ahead: deque[Future[Frame]] = deque()
            try:
                for index in range(len(self)):
                    ahead.append(pool.submit(self.frame, index))
                    # a few frames ahead keep the workers busy while the reader writes one
                    if len(ahead) > 2 * self._workers:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def frame(self, index: int) -> Frame:
        """The frame at a position; the same bits whenever and in whatever order it is asked for."""
        map_from_camera = self.poses[index].copy()
        image, depth = self._renderer.render(self.camera, map_from_camera)
        rng = np.random.default_rng([*self._seed, index])
        return Frame(self._sensor.image(image, rng), self.camera, int(self._stamps_ns[index]), self._sensor.depth(depth, rng),
                     map_from_camera,
                     f'room{self._seed[0]}-{self._seed[1]}-{index:06d}')
