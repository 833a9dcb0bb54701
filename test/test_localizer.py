"""The whole chain on a tiny map of a synthetic room: the same bits for the same frame, and the same pose through other cameras."""
from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dsac_ros.config import EstimatorOptions, IntegrityOptions
from dsac_ros.errors import ConfigError, MapError
from dsac_ros.localizer import Localizer, resolve_device
from dsac_ros.networks.encoder import shared_encoder
from dsac_ros.records import Camera, Estimate, Frame, Guess

sys.path.append(str(Path(__file__).parent))
import rooms  # noqa: E402


@pytest.fixture(scope='module')
def localizer() -> Localizer:
    return Localizer.from_map(rooms.tiny_map()[0], 'cpu')


def error(estimate: Estimate, frame: Frame) -> tuple[float, float]:
    a, b = estimate.map_from_camera, frame.map_from_camera
    return float(np.linalg.norm(a[:3, 3] - b[:3, 3])), float(np.degrees(Rotation.from_matrix(a[:3, :3] @ b[:3, :3].T).magnitude()))


@pytest.mark.parametrize(('modality', 'metres', 'degrees'), [('rgbd', 0.05, 2.0), ('rgb', 0.12, 3.0)])
def test_training_views_are_found(localizer: Localizer, modality: str, metres: float, degrees: float) -> None:
    """A head of 900 steps (seconds) in a room of 5 m: a twentieth of what chance would give, not what a real map can do."""
    frames = rooms.tiny_frames()[::3]
    estimates = [localizer.localize(frame, modality) for frame in frames]
    errors = np.array([error(e, f) for e, f in zip(estimates, frames)])
    assert np.median(errors[:, 0]) < metres and np.median(errors[:, 1]) < degrees, errors
    assert np.mean([e.verdict.accepted for e in estimates]) > 0.7
    for estimate, frame in zip(estimates, frames):
        assert (estimate.stamp_ns, estimate.modality, estimate.expert) == (frame.stamp_ns, modality, 'tiny')
        assert estimate.map_from_camera.shape == (4, 4) and estimate.map_from_camera.dtype == np.float64
        np.testing.assert_allclose(estimate.map_from_camera[:3, :3] @ estimate.map_from_camera[:3, :3].T, np.eye(3), atol=1e-9)
        np.testing.assert_array_equal(estimate.covariance, estimate.covariance.T)
        assert np.linalg.eigvalsh(estimate.covariance).min() > 0
        assert 0 <= estimate.inlier_ratio <= 1 and 0 <= estimate.spread <= 1 and estimate.inliers <= 1200 and estimate.residual >= 0
        assert {'prepare', 'encoder', 'expert', 'estimator'} <= set(estimate.stage_times_ms) and min(estimate.stage_times_ms.values()) >= 0


@pytest.mark.parametrize('modality', ['rgb', 'rgbd'])
def test_the_same_frame_gives_the_same_bits(localizer: Localizer, modality: str) -> None:
    """Other frames in between, and another localizer of the same map: nothing may be remembered. Another stamp draws other sets."""
    first_frame, other = rooms.tiny_frames()[4], rooms.tiny_frames()[20]
    first = localizer.localize(first_frame, modality)
    localizer.localize(other, modality)
    fresh = Localizer.from_map(rooms.tiny_map()[0], 'cpu')
    for again in (localizer.localize(first_frame, modality), fresh.localize(first_frame, modality)):
        for name in ('map_from_camera', 'covariance'):
            assert getattr(again, name).tobytes() == getattr(first, name).tobytes()
        assert (again.inliers, again.spread, again.residual, again.verdict) == (first.inliers, first.spread, first.residual, first.verdict)
    cells_only = Localizer.from_map(rooms.tiny_map()[0], 'cpu', EstimatorOptions(landmarks=False, refine_steps=1))
    alone = cells_only.localize(first_frame, modality).map_from_camera.tobytes()  # one step does not hide which sets were drawn
    cells_only.localize(other, modality)
    assert cells_only.localize(first_frame, modality).map_from_camera.tobytes() == alone
    stamps = [cells_only.localize(replace(first_frame, stamp_ns=stamp), modality).map_from_camera.tobytes() for stamp in range(1, 5)]
    assert len(set(stamps)) > 1


@pytest.mark.parametrize('stamp_ns', [0, 1, 2 ** 63 - 1, 2 ** 64, -5])
def test_any_stamp_will_do(localizer: Localizer, stamp_ns: int) -> None:
    assert localizer.localize(replace(rooms.tiny_frames()[0], stamp_ns=stamp_ns), 'rgbd').stamp_ns == stamp_ns


def test_without_depth_rgbd_is_rgb(localizer: Localizer) -> None:
    frame = rooms.tiny_frames()[8]
    expected = localizer.localize(replace(frame, depth=None), 'rgb')
    hole = np.zeros_like(frame.depth)
    few = hole.copy()
    few[100:140, 100:140] = frame.depth[100:140, 100:140]  # 25 cells
    for depth in (None, hole, few, np.full_like(hole, np.nan)):
        estimate = localizer.localize(replace(frame, depth=depth), 'rgbd')
        assert estimate.modality == 'rgb' and estimate.map_from_camera.tobytes() == expected.map_from_camera.tobytes()
    assert localizer.localize(frame, 'rgb').map_from_camera.tobytes() == expected.map_from_camera.tobytes()  # depth is not looked at


def test_holes_of_any_kind_in_depth(localizer: Localizer) -> None:
    """A third of the image without depth, as 0, NaN, infinite or negative: the same answer, near the whole one."""
    frame = rooms.tiny_frames()[8]
    answers = []
    for nothing in (0.0, np.nan, np.inf, -1.0):
        depth = frame.depth.copy()
        depth[:, :107] = nothing
        answers.append(localizer.localize(replace(frame, depth=depth), 'rgbd'))
    assert {a.map_from_camera.tobytes() for a in answers if a.modality == 'rgbd'} == {answers[0].map_from_camera.tobytes()}
    assert all(a.modality == 'rgbd' for a in answers) and error(answers[0], frame)[0] < 0.15


def warped(frame: Frame, camera: Camera) -> Frame:
    """The same view through another camera in the same place: every pixel of its image looked up where its ray meets the first image."""
    x, y = np.meshgrid(np.arange(camera.width, dtype=np.float64), np.arange(camera.height, dtype=np.float64))
    flat, d = np.stack([x, y], -1).reshape(-1, 1, 2), np.array(camera.distortion)
    if camera.distortion_model == 'equidistant':
        rays = cv2.fisheye.undistortPoints(flat, camera.matrix(), d)
    else:
        rays = cv2.undistortPointsIter(flat, camera.matrix(), d, None, None, (3, 50, 1e-12))
    pixels = rays.reshape(-1, 2) * [frame.camera.fx, frame.camera.fy] + [frame.camera.cx, frame.camera.cy]
    u, v = pixels.astype(np.float32).T.reshape(2, *x.shape)
    image = cv2.remap(frame.image, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return replace(frame, image=image, depth=cv2.remap(frame.depth, u, v, cv2.INTER_NEAREST), camera=camera)


CAMERAS = {
    'plumb_bob': Camera(320, 240, 290.0, 290.0, 159.5, 119.5, 'plumb_bob', (-0.25, 0.06, 0.001, -0.001, 0.0)),
    'rational': Camera(320, 240, 290.0, 290.0, 159.5, 119.5, 'rational_polynomial', (0.3, -0.1, 0.0, 0.0, 0.01, 0.5, -0.1, 0.0)),
    'equidistant': Camera(320, 240, 290.0, 290.0, 159.5, 119.5, 'equidistant', (0.01, 0.002, 0.0, 0.0)),
    'other size, off centre, fx != fy': Camera(500, 400, 420.0, 450.0, 230.0, 210.0, 'plumb_bob', (0.0, 0.0, 0.0, 0.0)),
}


@pytest.mark.parametrize('name', CAMERAS)
def test_other_cameras_of_the_same_view(localizer: Localizer, name: str) -> None:
    """Rays have to be undone right: taken for a pinhole, these distortions move cells at the edge by 5 to 20 px, the pose by decimetres."""
    frames = rooms.tiny_frames()[4:36:8]
    plain = np.array([error(localizer.localize(f, 'rgbd'), f) for f in frames])
    other = np.array([error(localizer.localize(warped(f, CAMERAS[name]), 'rgbd'), f) for f in frames])
    assert np.median(other[:, 0]) < np.median(plain[:, 0]) + 0.06 and np.median(other[:, 1]) < np.median(plain[:, 1]) + 1.5, (plain, other)


def test_a_twice_as_large_image_gives_the_same_pose(localizer: Localizer) -> None:
    frame = rooms.tiny_frames()[12]
    large = replace(frame, image=cv2.resize(frame.image, (640, 480), interpolation=cv2.INTER_NEAREST),
                    depth=cv2.resize(frame.depth, (640, 480), interpolation=cv2.INTER_NEAREST), camera=frame.camera.resized(640, 480))
    small, twice = localizer.localize(frame, 'rgbd'), localizer.localize(large, 'rgbd')
    assert np.abs(small.map_from_camera - twice.map_from_camera).max() < 0.02


def test_what_was_never_mapped_is_refused(localizer: Localizer) -> None:
    rng = np.random.default_rng(0)
    frame = rooms.tiny_frames()[0]
    noise = cv2.resize(rng.integers(0, 255, (30, 40, 3)).astype(np.uint8), (320, 240))
    for image in (np.zeros_like(frame.image), np.full_like(frame.image, 255), noise):
        for modality in ('rgb', 'rgbd'):
            estimate = localizer.localize(replace(frame, image=image), modality)
            assert not estimate.verdict.accepted and estimate.verdict.reasons
            assert np.isfinite(estimate.map_from_camera).all()


def test_integrity_options_are_used() -> None:
    strict = Localizer.from_map(rooms.tiny_map()[0], 'cpu', EstimatorOptions(landmarks=False), IntegrityOptions(min_inliers=1e6))
    assert 'few_inliers' in strict.localize(rooms.tiny_frames()[0], 'rgbd').verdict.reasons


def test_rgb_needs_landmarks_where_the_map_has_any() -> None:
    """A frame whose pose no number of landmarks can confirm: refused for that in RGB, not with depth, not where it is not asked for, and
    not where there are none to ask."""
    path, frame = rooms.tiny_map()[0], rooms.tiny_frames()[0]
    unconfirmed, lax = EstimatorOptions(min_landmarks=1e4), IntegrityOptions(require_landmarks=False)
    asked = Localizer.from_map(path, 'cpu', unconfirmed)
    assert 'no_landmarks' in asked.localize(frame, 'rgb').verdict.reasons
    assert 'no_landmarks' not in asked.localize(frame, 'rgbd').verdict.reasons
    cells_only = Localizer.from_map(path, 'cpu', EstimatorOptions(landmarks=False))
    for localizer in (Localizer.from_map(path, 'cpu', unconfirmed, lax), cells_only):
        assert 'no_landmarks' not in localizer.localize(frame, 'rgb').verdict.reasons
    assert Localizer.from_map(path, 'cpu').localize(frame, 'rgb').verdict.accepted


def test_landmarks_find_the_pose_where_cells_say_nothing() -> None:
    """A head that puts every cell somewhere in the room at random: the matches to anywhere have to give the first pose."""
    localizer = Localizer.from_map(rooms.tiny_map()[0], 'cpu')
    head, generator = localizer.choice.sub_maps.get(0).expert, torch.Generator().manual_seed(0)

    def lost(features: torch.Tensor, last: object) -> tuple[torch.Tensor, ...]:
        points, scales, logits = head(features)
        return 4 * torch.rand(points.shape, generator=generator) - 2, scales, logits

    localizer.choice.sub_maps.get(0).expert = lost
    frames = rooms.tiny_frames()[::6]
    estimates = [localizer.localize(frame, 'rgb') for frame in frames]
    found = [estimate.landmarks > 0 and error(estimate, frame)[0] < 0.05 for estimate, frame in zip(estimates, frames)]
    assert np.mean(found) > 0.6, found


def test_a_pose_by_landmarks_needs_no_more_support_with_depth_than_without(localizer: Localizer) -> None:
    """Depth that no cell meets: what agrees across the rays counts, as it does without depth; without landmarks nothing is left."""
    frame = next(f for f in rooms.tiny_frames() if localizer.localize(f, 'rgb').landmarks)
    far = replace(frame, depth=frame.depth * 1.5)
    rgb, rgbd = localizer.localize(frame, 'rgb'), localizer.localize(far, 'rgbd')
    assert rgbd.modality == 'rgbd' and rgbd.landmarks == pytest.approx(rgb.landmarks, rel=0.1)
    assert (rgbd.inliers, rgbd.inlier_ratio, rgbd.spread) == pytest.approx((rgb.inliers, rgb.inlier_ratio, rgb.spread), rel=0.05)
    cells_alone = Localizer.from_map(rooms.tiny_map()[0], 'cpu', EstimatorOptions(landmarks=False)).localize(far, 'rgbd')
    assert cells_alone.inlier_ratio < 0.5 * rgb.inlier_ratio


@pytest.mark.parametrize('gain', [1.3, 0.75])
def test_with_depth_a_wrong_focal_length_is_found_out(localizer: Localizer, gain: float) -> None:
    """A camera that is further off and sees less of an angle has the same image: only the depth is another."""
    frames = rooms.tiny_frames()[::6]
    wrong = [replace(f, camera=replace(f.camera, fx=gain * f.camera.fx, fy=gain * f.camera.fy)) for f in frames]
    found = {name: [localizer.localize(f, modality) for f in chosen] for name, chosen, modality in (
        ('right', frames, 'rgbd'), ('wrong', wrong, 'rgbd'), ('without depth', wrong, 'rgb'))}
    told = {name: [check.value for e in estimates for check in e.verdict.checks if check.name == 'max_depth_misfit']
            for name, estimates in found.items()}
    assert len(told['right']) > 3 and max(told['right']) < 0.02 and not told['without depth']
    assert len(told['wrong']) > 2 and min(told['wrong']) > 0.15
    for estimate in found['wrong']:
        assert not estimate.verdict.accepted
        assert not estimate.landmarks or 'depth_disagrees' in estimate.verdict.reasons


@pytest.fixture(scope='module')
def sure_of_itself() -> Localizer:
    """The map as one whose landmarks are as good as they say: too few of the tiny map's frames were held out to measure that."""
    bundle = rooms.tiny_map()[1]
    factors = {**bundle.entry.covariance_factors, 'landmarks': 1.0}
    return Localizer(replace(bundle, entry=replace(bundle.entry, covariance_factors=factors)), 'cpu')


@pytest.mark.parametrize('gain', [1.3, 0.75])
def test_without_depth_a_wrong_focal_length_is_found_out_too(sure_of_itself: Localizer, gain: float) -> None:
    """By the landmarks that a pose which makes up for it leaves unexplained, and no good frame is refused for it."""
    blurred = replace(rooms.tiny_frames()[3], image=cv2.GaussianBlur(rooms.tiny_frames()[3].image, (0, 0), 12.0))
    by_cells = sure_of_itself.localize(blurred, 'rgb')
    assert not by_cells.landmarks and 'max_focal_misfit' not in {check.name for check in by_cells.verdict.checks}
    for frame in rooms.tiny_frames()[::6]:
        wrong = replace(frame, camera=replace(frame.camera, fx=gain * frame.camera.fx, fy=gain * frame.camera.fy))
        right, found_out = sure_of_itself.localize(frame, 'rgb'), sure_of_itself.localize(wrong, 'rgb')
        assert right.landmarks and {check.name: check.value for check in right.verdict.checks}['max_focal_misfit'] < 0.01
        assert found_out.landmarks and found_out.verdict.reasons == ('focal_length',)


def test_a_few_landmarks_that_the_others_contradict_are_no_pose(sure_of_itself: Localizer) -> None:
    """Images whose sixteen parts have changed places: tests of cells and focal length see it too, not all."""
    without = Localizer(sure_of_itself.choice.sub_maps.get(0).bundle, 'cpu', integrity=IntegrityOptions(min_landmark_share=0.0))
    shares = []
    for frame in rooms.tiny_frames():
        rows, columns = (size // 4 for size in frame.image.shape[:2])
        order = np.random.default_rng(frame.stamp_ns % 1000).permutation(16)
        tiles = [frame.image[r * rows:(r + 1) * rows, c * columns:(c + 1) * columns] for r, c in (divmod(n, 4) for n in order)]
        mixed = replace(frame, image=np.concatenate([np.concatenate(tiles[4 * r:4 * r + 4], 1) for r in range(4)]))
        verdict = sure_of_itself.localize(mixed, 'rgb').verdict
        told = {check.name: check.value for check in verdict.checks}
        if 'min_landmark_share' in told:
            shares.append(told['min_landmark_share'])
            disagree = shares[-1] < IntegrityOptions().min_landmark_share
            assert ('landmarks_disagree' in verdict.reasons) == disagree
            assert 'landmarks_disagree' not in without.localize(mixed, 'rgb').verdict.reasons
    assert len(shares) > 5 and np.median(shares) < IntegrityOptions().min_landmark_share, shares


@pytest.mark.parametrize('tracked', [False, True])
def test_every_test_of_landmarks_is_made_of_a_frame(localizer: Localizer, tracked: bool) -> None:
    """And fails where it should, around a guess as in a search: depth that is a third too far."""
    frame = rooms.tiny_frames()[4]
    guess = Guess(np.linalg.inv(frame.map_from_camera), 48.0, 0.0) if tracked else None
    estimate = localizer.localize(frame, 'rgbd', guess)
    told = {check.name: check.value for check in estimate.verdict.checks}
    assert estimate.tracked == tracked and estimate.verdict.accepted
    assert 0.1 < told['max_misfit'] < 1.5 and 0 < told['max_depth_misfit'] < 0.05 and ('max_focal_misfit' in told) == (not tracked)
    strict = Localizer.from_map(rooms.tiny_map()[0], 'cpu', integrity=IntegrityOptions(max_misfit=0.1))
    assert 'poor_fit' in strict.localize(frame, 'rgbd', guess).verdict.reasons
    if tracked:  # what is refused around a guess is searched
        assert not strict.localize(frame, 'rgbd', guess).tracked
        assert not localizer.localize(replace(frame, depth=1.3 * frame.depth), 'rgbd', guess).tracked
    assert 'depth_disagrees' in localizer.localize(replace(frame, depth=1.3 * frame.depth), 'rgbd', guess).verdict.reasons


def test_the_bundles_factors_scale_the_covariance() -> None:
    bundle, frame, options = rooms.tiny_map()[1], rooms.tiny_frames()[3], EstimatorOptions(landmarks=False)
    entries = [replace(bundle.entry, covariance_factors=dict.fromkeys(bundle.covariance_factors, factor)) for factor in (1.0, 9.0)]
    covariances = [Localizer(replace(bundle, entry=entry), 'cpu', options).localize(frame, 'rgbd').covariance for entry in entries]
    np.testing.assert_allclose(covariances[1], 9 * covariances[0], rtol=1e-4)  # up to the floor of the inversion


def test_warm_up_leaves_no_trace(localizer: Localizer) -> None:
    frame = rooms.tiny_frames()[5]
    before = localizer.localize(frame, 'rgbd')
    localizer.warm_up(None, 'rgb')
    localizer.warm_up(frame.camera, 'rgbd')
    assert localizer.localize(frame, 'rgbd').map_from_camera.tobytes() == before.map_from_camera.tobytes()


def test_maps_and_devices_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(MapError, match='manifest.yaml'):
        Localizer.from_map(tmp_path / 'none.dsacmap', 'cpu')
    assert resolve_device('cpu').type == 'cpu' and resolve_device('auto').type in ('cpu', 'cuda')
    with pytest.raises(ConfigError, match='banana'):
        resolve_device('banana')
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda or cuda:N, found 'meta'"):
        resolve_device('meta')
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match='cuda'):
            resolve_device('cuda:0')


def test_a_map_with_a_last_stage_of_its_own_is_seen_through_it() -> None:
    """A copy of the encoder's changes nothing, alone and among sub-maps without; one that tells nothing apart is no map."""
    path, bundle = rooms.tiny_map()
    frame, cells_alone = rooms.tiny_frames()[3], EstimatorOptions(landmarks=False)
    plain = Localizer(bundle, 'cpu', cells_alone).localize(frame, 'rgbd')
    expert = copy.deepcopy(bundle.expert)
    expert.last_stage = shared_encoder('cpu').own_last_stage()
    ours = Localizer(replace(bundle, expert=expert), 'cpu', cells_alone).localize(frame, 'rgbd')
    np.testing.assert_allclose(ours.map_from_camera, plain.map_from_camera, atol=1e-4)
    assert ours.inlier_ratio == pytest.approx(plain.inlier_ratio, abs=1e-3)
    for value in expert.last_stage.parameters():
        value.data.zero_()
    assert Localizer(replace(bundle, expert=expert), 'cpu', cells_alone).localize(frame, 'rgbd').inlier_ratio < 0.8 * plain.inlier_ratio
