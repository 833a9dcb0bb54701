"""The synthetic rooms against independent geometry: rays cut with boxes in float64, and views projected into each other."""
from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from dsac_ros.data.synthetic import SensorOptions, SyntheticSource
from dsac_ros.data.synthetic.building import Building, build_building
from dsac_ros.data.synthetic.path import hand_held
from dsac_ros.data.synthetic.room import OPENING_HEIGHT_M, Room, build_room
from dsac_ros.errors import ConfigError
from dsac_ros.records import Camera

TEXELS = 60.0  # coarse textures: painting takes a second instead of several
BARE = SensorOptions(0, 0, 0, 0)
SKEWED = Camera(200, 150, 170.0, 140.0, 83.2, 91.7)  # fx != fy, principal point off the centre


def source(room: int = 1, trajectory: int = 1, frames: int = 30, camera: Camera = SKEWED, sensor: SensorOptions = BARE) -> SyntheticSource:
    return SyntheticSource(room, trajectory, frames, camera.width, camera.height, camera=camera, sensor=sensor, texels_per_metre=TEXELS)


def cast(room: Room, origin: np.ndarray, directions_N3: np.ndarray) -> np.ndarray:
    """Distance (N,), in lengths of the directions, to the first surface: the room from inside, every box from outside."""
    def slabs(start: np.ndarray, ways: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ways = np.where(ways == 0, 1e-300, ways)
        one, two = (-half - start) / ways, (half - start) / ways
        return np.minimum(one, two).max(-1), np.maximum(one, two).min(-1)
    half = np.array(room.size) / 2
    nearest = slabs(origin - [0, 0, half[2]], directions_N3, half)[1]
    for box in room.boxes:
        rotation, centre = box.map_from_box[:3, :3], box.map_from_box[:3, 3]
        enter, leave = slabs((origin - centre) @ rotation, directions_N3 @ rotation, np.array(box.size) / 2)
        nearest = np.where((enter < leave) & (enter > 0), np.minimum(nearest, enter), nearest)
    return nearest


def rays(camera: Camera) -> np.ndarray:
    """Directions (H, W, 3) with z = 1, so that the distance along them is the depth."""
    x, y = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    return np.stack([(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, np.ones(x.shape)], -1)


@pytest.mark.parametrize('room', [1, 2])
def test_depth_is_that_of_rays_cut_with_boxes(room: int) -> None:
    frames = source(room)
    for index in range(0, 30, 10):
        frame = frames.frame(index)
        directions = rays(frame.camera) @ frame.map_from_camera[:3, :3].T
        expected = cast(frames.room, frame.map_from_camera[:3, 3], directions.reshape(-1, 3)).reshape(frame.depth.shape)
        # float32 holds 1/z to 1e-7; a ray that grazes an edge may go either way by rounding
        wrong = np.abs(frame.depth - expected) > 2e-5
        assert wrong.mean() < 2e-4
        assert frame.depth.min() > 0


def test_close_to_a_wall_nothing_is_clipped() -> None:
    frames = source()
    corner = np.array(frames.room.size[:2]) / 2 - 0.12
    forward = np.array([1.0, 0.0, 0.0])
    map_from_camera = np.eye(4)
    map_from_camera[:3, :3] = np.stack([[0.0, -1, 0], [0, 0, -1], forward], -1)
    map_from_camera[:3, 3] = [*corner, frames.room.size[2] - 0.3]
    _, depth = frames._renderer.render(SKEWED, map_from_camera)
    directions = rays(SKEWED) @ map_from_camera[:3, :3].T
    expected = cast(frames.room, map_from_camera[:3, 3], directions.reshape(-1, 3)).reshape(depth.shape)
    assert (np.abs(depth - expected) > 2e-5).mean() < 2e-4


def test_views_agree_where_both_see_a_point() -> None:
    frames = source(camera=Camera(320, 240, 260.0, 300.0, 140.0, 131.0))
    for index in (0, 12, 24):
        a, b = frames.frame(index), frames.frame(index + 4)
        camera_b_from_a = np.linalg.inv(b.map_from_camera) @ a.map_from_camera
        points = (rays(a.camera) * a.depth[..., None])[10:-10, 10:-10].reshape(-1, 3) @ camera_b_from_a[:3, :3].T + camera_b_from_a[:3, 3]
        colours = a.image[10:-10, 10:-10].reshape(-1, 3)
        points, colours = points[points[:, 2] > 0.1], colours[points[:, 2] > 0.1]
        pixels = np.rint(points[:, :2] / points[:, 2:] * [260.0, 300.0] + [140.0, 131.0]).astype(int)
        inside = ((pixels >= 2) & (pixels < [318, 238])).all(-1)
        points, pixels, colours = points[inside], pixels[inside], colours[inside]
        seen = b.depth[pixels[:, 1], pixels[:, 0]]
        # half a pixel of rounding moves the depth of a slanted surface by a few centimetres at most
        same = np.abs(seen - points[:, 2]) < 0.02 * points[:, 2]
        assert inside.sum() > 20000 and same.mean() > 0.85
        difference = np.abs(b.image[pixels[:, 1], pixels[:, 0]][same].astype(float) - colours[same])
        unrelated = np.abs(b.image[pixels[:, 1], pixels[:, 0]][same].astype(float) - np.roll(colours[same], 997, 0))
        assert np.median(difference) <= 6 and difference.mean() < 0.35 * unrelated.mean()


def test_frames_follow_the_protocol() -> None:
    frames = source(frames=5)
    listed = list(frames)
    assert len(frames) == len(listed) == 5 and frames.map_frame == 'map' and not frames.warnings
    assert np.diff([f.stamp_ns for f in listed]).tolist() == [100_000_000] * 4 and listed[0].stamp_ns > 0
    assert len({f.name for f in listed}) == 5
    for frame in listed:
        assert frame.image.shape == (150, 200, 3) and frame.image.dtype == np.uint8
        assert frame.depth.shape == (150, 200) and frame.depth.dtype == np.float32 and frame.camera == SKEWED
        rotation = frame.map_from_camera[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) > 0


def test_the_same_seeds_give_the_same_bits_and_others_do_not() -> None:
    noisy = SensorOptions(depth_noise=0.002)
    again, first = (list(islice(source(sensor=noisy), 3)) for _ in range(2))
    for a, b in zip(first, again):
        for name in ('image', 'depth', 'map_from_camera'):
            assert np.array_equal(getattr(a, name), getattr(b, name))
    assert not np.allclose(source(trajectory=2).poses, source().poses)
    assert source(room=2).room.size != source().room.size


def test_depth_noise_grows_with_the_square_and_leaves_holes() -> None:
    exact, noisy = source().frame(3).depth, source(sensor=SensorOptions(depth_noise=0.003)).frame(3).depth
    hole = noisy == 0
    assert 0 < hole.mean() < 0.3
    relative = ((noisy - exact) / exact ** 2)[~hole]
    assert 0.0027 < relative.std() < 0.0033


@pytest.mark.parametrize('seed', range(1, 6))
def test_the_way_is_clear_and_slow(seed: int) -> None:
    room = build_room(seed)
    for trajectory in (1, 2):
        poses = hand_held(room, trajectory, 400, 10.0)
        assert room.clearance(poses[:, :2, 3]).min() > 0.2
        assert poses[:, 2, 3].min() >= 1.0 and poses[:, 2, 3].max() <= 1.75
        steps = np.linalg.norm(np.diff(poses[:, :2, 3], axis=0), axis=-1) * 10
        assert steps.max() <= 0.52 and steps.mean() > 0.25
        between = np.einsum('nji,njk->nik', poses[:-1, :3, :3], poses[1:, :3, :3])
        turn = np.degrees(np.arccos(np.clip((np.trace(between, axis1=1, axis2=2) - 1) / 2, -1, 1))) * 10
        assert turn.max() <= 40.0
        # the sweeps show the whole room: every 45 degrees of yaw is looked at
        yaw = np.arctan2(poses[:, 1, 2], poses[:, 0, 2])
        assert (np.histogram(yaw, 8, (-np.pi, np.pi))[0] > 5).all()


def test_clearance_counts_walls_and_furniture() -> None:
    room = build_room(1)
    assert room.clearance(np.array([[room.size[0] / 2 + 0.1, 0.0]]))[0] < 0
    centres = np.array([box.map_from_box[:2, 3] for box in room.obstacles])
    assert (room.clearance(centres) < 0).all()


@pytest.mark.parametrize('wrong', [{'frames': 0}, {'room_seed': -1}, {'rate_hz': 0.0}, {'width': 4},
                                   {'sensor': SensorOptions(depth_noise=-1)}, {'camera': SKEWED}, {'posters': -1}, {'rooms': 3},
                                   {'rooms': 2, 'posters': 1}, {'rooms': 2, 'frames': 20}])
def test_wrong_numbers_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        SyntheticSource(**{'room_seed': 1, 'trajectory_seed': 1, 'frames': 2, 'texels_per_metre': TEXELS, **wrong})


def test_a_near_twin_has_other_posters_and_else_the_same_pixels() -> None:
    def view(posters: int) -> tuple[np.ndarray, np.ndarray]:
        frames = SyntheticSource(1, 1, 12, 200, 150, sensor=BARE, texels_per_metre=20, rate_hz=0.5, posters=posters)
        return np.stack([frames.frame(index).image for index in range(12)]), np.stack([frames.frame(index).depth for index in range(12)])
    (plain, depth), (twin, twin_depth), (other, _) = view(0), view(1), view(2)
    assert np.array_equal(depth, twin_depth)
    differs = (plain != twin).any(-1)
    assert 0.02 < differs.mean() < 0.5 and not differs.all((1, 2)).any()
    assert (twin != other).any()


@pytest.fixture(scope='module')
def building() -> Building:
    return build_building(1, 2)


def test_a_way_leads_through_all_rooms_of_a_building_and_the_corridor(building: Building) -> None:
    poses = hand_held(building, 1, 120, 2.0)
    visits = [(np.abs((poses[:, :2, 3] - m[:2, 3]) @ m[:2, :2]) < np.array(room.size[:2]) / 2).all(1).sum() for m, room in building.cells]
    assert len(building.rooms) == 2 and len(visits) == 3 and min(visits) > 10 and sum(visits) == 120
    assert building.clearance(poses[:, :2, 3]).min() > 0.2
    assert np.linalg.norm(np.diff(poses[:, :2, 3], axis=0), axis=-1).max() <= 0.52 / 2.0


def test_walls_of_a_building_are_closed_but_for_its_doors(building: Building) -> None:
    (_, room), door = building.rooms[0], building.doors_D2[0]
    assert building.clearance(door[None])[0] == pytest.approx(0.95 / 2, abs=1e-9)
    assert building.clearance(door[None] + [1.2, 0.0])[0] < 1e-9
    walls = [face for face in room.shell if abs(face.down[2]) == 1]
    area = sum(np.prod(face.size) for face in walls)
    assert area == pytest.approx(2 * (room.size[0] + room.size[1]) * room.size[2] - 0.95 * OPENING_HEIGHT_M)


def test_the_depth_of_a_building_is_that_of_rays_cut_with_all_its_walls(building: Building) -> None:
    frames = SyntheticSource(1, 1, 120, 60, 45, 2.0, sensor=BARE, texels_per_metre=10, rooms=2)
    left = 0
    for index in range(0, 120, 12):
        frame = frames.frame(index)
        directions = (rays(frame.camera) @ frame.map_from_camera[:3, :3].T)[::9, ::9].reshape(-1, 3)
        expected = cast_building(building, frame.map_from_camera[:3, 3], directions)
        # A ray that grazes an edge may go either way by rounding.
        assert (np.abs(frame.depth[::9, ::9].ravel() - expected) > 1e-4).mean() < 0.03, index
        ends, origin = frame.map_from_camera[:2, 3] + directions[:, :2] * expected[:, None], frame.map_from_camera[:2, 3]
        m, room = next((m, r) for m, r in building.cells if (np.abs((origin - m[:2, 3]) @ m[:2, :2]) <= np.array(r.size[:2]) / 2).all())
        left += (np.abs((ends - m[:2, 3]) @ m[:2, :2]) > np.array(room.size[:2]) / 2 + 0.01).any()
    assert left >= 2, 'no view leads through a door'


def cast_building(building: Building, origin: np.ndarray, directions_N3: np.ndarray) -> np.ndarray:
    """As `cast`, through openings: each cell on the way is left by the first of its surfaces, or else entered anew in the next one."""
    inside = [(m, room) for m, room in building.cells if (np.abs((origin[:2] - m[:2, 3]) @ m[:2, :2]) <= np.array(room.size[:2]) / 2).all()]
    out = np.full(len(directions_N3), np.nan)
    for n, direction in enumerate(directions_N3):
        start, (m, room), walked = origin, inside[0], 0.0
        for _ in range(6):
            local_from_map = np.linalg.inv(m)
            own = local_from_map[:3, :3] @ start + local_from_map[:3, 3], local_from_map[:3, :3] @ direction
            step = cast(room, own[0], own[1][None])[0]
            end = own[0] + step * own[1]
            walked += step
            wall = next((k for k, gap in enumerate((room.size[1] / 2 + end[1], room.size[0] / 2 - end[0], room.size[1] / 2 - end[1],
                                                    room.size[0] / 2 + end[0])) if abs(gap) < 1e-9), None)
            along = {0: end[0], 1: end[1], 2: -end[0], 3: -end[1]}.get(wall, np.inf)
            if end[2] > OPENING_HEIGHT_M or not any(o.wall == wall and abs(along - o.x) < o.width / 2 for o in room.openings):
                break
            start = origin + walked * direction
            beyond = start + 1e-6 * direction
            m, room = next((m, r) for m, r in building.cells
                           if r is not room and (np.abs((beyond[:2] - m[:2, 3]) @ m[:2, :2]) <= np.array(r.size[:2]) / 2).all())
        out[n] = walked
    return out
