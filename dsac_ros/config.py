"""Every option once: default, unit, range and help. YAML files, ROS parameters, command lines and docs come from here."""
from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, TypeVar

import yaml

from dsac_ros.errors import ConfigError

T = TypeVar('T')


def option(default: Any, text: str, *, unit: str = '', low: float | None = None, high: float | None = None,
           choices: tuple[str, ...] = (), read_only: bool = True) -> Any:
    """A dataclass field that knows its own documentation and limits; `read_only` ones are set at start-up only."""
    return field(default=default, metadata={'help': text, 'unit': unit, 'low': low, 'high': high,
                                            'choices': choices, 'read_only': read_only})


threshold = partial(option, read_only=False)


class Options:
    """Base of the option groups: every value is checked on construction, wherever it came from."""

    def __post_init__(self) -> None:
        for f in fields(self):
            check_value(type(self).__name__, f.name, getattr(self, f.name), f.default, f.metadata)


def check_value(group: str, name: str, value: Any, default: Any, limits: Any) -> None:
    """Raise ConfigError when a value has the wrong type or lies outside of its range."""
    kind = type(default)
    good = isinstance(value, (int, float)) and not isinstance(value, bool) if kind is float else type(value) is kind
    good = good and (kind is not tuple or all(isinstance(part, str) for part in value))
    if not good:
        raise ConfigError(f'{group}.{name}: expected {kind.__name__}, found {value!r}')
    if limits['choices'] and value not in limits['choices']:
        raise ConfigError(f'{group}.{name}: expected one of {", ".join(limits["choices"])}, found {value!r}')
    low, high = limits['low'], limits['high']
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        raise ConfigError(f'{group}.{name}: expected {low if low is not None else "-inf"} to '
                          f'{high if high is not None else "inf"} {limits["unit"]}'.rstrip() + f', found {value!r}')


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a refusal of an unknown name: the nearest known one, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 1)
    return f'; did you mean {near[0]}?' if near else f'; known: {", ".join(known)}'


def from_dict(group: type[T], values: dict[str, Any]) -> T:
    """Build an option group from a mapping; an unknown key is refused with the nearest known one."""
    known = [f.name for f in fields(group)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f'{group.__name__}: unknown option {key!r}{nearest(str(key), known)}')
    return group(**values)


def build_groups(groups: Mapping[str, type[Any]], values: Mapping[str, Any]) -> dict[str, Any]:
    """Prefix -> option group, from values by their full names: PREFIX.NAME, or NAME for the prefix ''. Raises ConfigError."""
    parts: dict[str, dict[str, Any]] = {prefix: {} for prefix in groups}
    for name, value in with_precision(values).items():
        prefix, _, own_name = name.rpartition('.')
        if prefix not in parts:
            known = [f'{p}.{f.name}'.lstrip('.') for p, group in groups.items() for f in fields(group)]
            raise ConfigError(f'unknown option {name!r}{nearest(name, known)}')
        parts[prefix][own_name] = value
    return {prefix: from_dict(group, parts[prefix]) for prefix, group in groups.items()}


def parse_settings(groups: Mapping[str, type[Any]], settings: list[str]) -> dict[str, Any]:
    """Values by full name out of NAME=VALUE texts, read as YAML scalars. Refuses what is no setting of the groups, and bad values."""
    values = {}
    for text in settings:
        name, equals, value = text.partition('=')
        if not equals:
            raise ConfigError(f'--set {text}: expected NAME=VALUE')
        try:
            values[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f'--set {text}: {value!r} is no YAML scalar') from error
        if isinstance(values[name], str) and _is_number(value):  # YAML 1.1 takes 1e-3, without a point, for text
            values[name] = float(value)
    build_groups(groups, values)
    return values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class NodeOptions(Options):
    """What the localizer node reads, publishes and how long it waits. Topic names are relative, so that a namespace and remapping work."""

    map: str = option('', 'Map bundle to localise in: the path of a folder NAME.dsacmap. Required.')
    autostart: bool = option(True, 'Configure and activate at once; false waits for a lifecycle manager, such as that of Nav2, to do it.')
    modality: str = option('rgbd', 'What to localise with. rgbd takes a frame whose depth does not come as rgb.', choices=('rgbd', 'rgb'))
    device: str = option('auto', 'Where the network runs: auto takes a GPU where there is one; else cpu, cuda or cuda:N.')
    threads: int = option(0, 'CPU threads of the network; 0 takes half of the cores, since keypoints are found beside it.', low=0, high=256)
    image_topic: str = option('image', 'Colour images, sensor_msgs/Image or, with image_compressed, sensor_msgs/CompressedImage.')
    image_compressed: bool = option(False, 'The colour images are sensor_msgs/CompressedImage (JPEG or PNG).')
    depth_topic: str = option('depth', 'Depth images registered to the colour image: 16UC1 [mm] or 32FC1 [m]; unused with modality rgb.')
    depth_compressed: bool = option(False, 'The depth images are sensor_msgs/CompressedImage (16-bit PNG or compressedDepth).')
    camera_info_topic: str = option('camera_info', 'Intrinsics of the colour image; the newest message counts and has to have its size.')
    queue_depth: int = option(1, 'Messages that the middleware keeps per input topic.', low=1, high=100)
    sync_slop: float = option(0.01, 'Largest difference of the stamps of a colour and a depth image that are one frame.',
                              unit='s', low=0.0, high=1.0)
    depth_wait: float = option(0.15, 'How long a colour image waits for its depth image before it is localised in rgb.',
                               unit='s', low=0.0, high=5.0)
    max_age: float = option(0.0, 'Refuse frames whose stamp is further than this from the clock when their turn comes; 0 = off.',
                            unit='s', low=0.0, high=3600.0)
    map_frame: str = option('', "Frame that poses are in; empty takes the map's own frame_id.")
    tf_mode: str = option('map_to_camera', 'Which transform goes to /tf, from the map frame to: odom_frame (corrects the drift of an '
                          'odometry that publishes odom_frame to base_frame), base_frame, tf_child_frame, or none.',
                          choices=('map_to_odom', 'map_to_base', 'map_to_camera', 'none'))
    tf_child_frame: str = option('localized_camera', 'Child frame for map_to_camera. The default is a private one that cannot quarrel with '
                                 'the TF tree of a robot; name the optical frame of the camera where nothing else publishes it.')
    frame_prefix: str = option('', 'Put before odom_frame, base_frame, camera_frame and tf_child_frame, as in robot1/. The map frame is '
                               'shared.')
    odom_frame: str = option('odom', 'Frame of the odometry, for map_to_odom.')
    base_frame: str = option('base_link', 'Frame of the robot, for map_to_odom and map_to_base.')
    camera_frame: str = option('', 'Optical frame of the camera in /tf; empty takes the frame_id of the images, without frame_prefix.')
    tf_wait: float = option(0.05, 'How long an image waits for the odometry of its stamp, for map_to_odom.', unit='s', low=0.0, high=1.0)
    tf_rate: float = option(20.0, 'How often map to odom_frame is sent between poses.', unit='Hz', low=1.0, high=200.0)
    transform_tolerance: float = option(0.1, 'How far ahead of the clock map to odom_frame is dated, so that who asks for now finds it.',
                                        unit='s', low=0.0, high=10.0)
    tf_max_age: float = option(3.0, 'Age of the last image with a published pose from which on map to odom_frame is no longer sent.',
                               unit='s', low=0.1, high=3600.0)
    tf_smoothing: float = option(0.0, 'Time constant with which a correction of the odometry is brought in, in place of one step; 0 = off.',
                                 unit='s', low=0.0, high=60.0)
    tf_jump_distance: float = option(0.5, 'A correction that moves the robot further than this is made in one step all the same.', unit='m',
                                     low=0.0, high=1e4)
    tf_jump_angle: float = option(0.3, 'as tf_jump_distance, for the rotation', unit='rad', low=0.0, high=4.0)


@dataclass(frozen=True)
class EstimatorOptions(Options):
    """Generate, score, refine (dsac_ros.ransac)."""

    hypotheses_rgb: int = option(128, 'minimal sets drawn per RGB frame; every root of P3P is scored', low=8, high=8192)
    hypotheses_rgbd: int = option(384, 'minimal sets drawn per RGB-D frame, two thirds of them of measured points', low=8, high=8192)
    uniform_share: float = option(0.1, 'share of the draws that ignores the learned guidance', low=0.0, high=1.0)
    scale_factor: float = option(2.0, 'standard deviation of a scene coordinate along an axis, per predicted scale (2 for the '
                                 'isotropic Laplace error that the head is trained for)', low=0.1, high=100.0)
    pixel_noise: float = option(0.1, 'noise of the viewing ray of a cell, in cells', low=1e-3, high=10.0)
    rgb_search_noise: float = option(0.4, 'the same in frames without depth, in place of the predicted scale, while the pose is searched',
                                     low=1e-2, high=10.0)
    rgb_final_share: float = option(0.1, 'once it is found: share of the cells of the frame whose rays are within what is then taken for '
                                    'that noise', low=1e-2, high=0.9)
    rgb_final_steps: int = option(8, 'iterations with that', low=1, high=100)
    depth_noise: float = option(0.003, 'noise of measured depth z: this times z^2', unit='1/m', low=0.0, high=1.0)
    depth_noise_floor: float = option(0.005, 'noise of measured depth at z = 0', unit='m', low=1e-4, high=1.0)
    inlier_sigmas: float = option(2.0, 'residual at which a correspondence is as likely an inlier as not, in standard deviations', low=0.5,
                                  high=20.0)
    rounds: int = option(1, 'parts that the sets are drawn in, each as large as all before it and half near what the best hypothesis so '
                         'far agrees with', low=1, high=16)
    early_out: bool = option(False, 'leave further rounds out when the pose is found for sure; waits for the device after each round')
    refined: int = option(8, 'hypotheses that are refined; the best is chosen afterwards', low=1, high=256)
    refine_steps: int = option(5, 'iterations of expectation maximisation with Gauss-Newton', low=1, high=100)
    refine_widening: float = option(2.0, 'how much larger the noise is taken in the first iteration', low=1.0, high=10.0)
    mode_distance: float = option(0.3, 'candidates further apart than this, or than mode_angle, are different places', unit='m', low=0.0,
                                  high=100.0)
    mode_angle: float = option(0.15, 'as mode_distance, for the rotation', unit='rad', low=0.0, high=4.0)
    landmarks: bool = option(True, 'match keypoints to the landmarks of the map around the first pose, where the map has any')
    landmark_radius_px: float = option(80.0, 'how far from where the first pose projects it a landmark is looked for, in an image 480 '
                                       'pixels high', unit='px', low=1.0, high=1000.0)
    landmark_noise_px: float = option(1.0, 'noise of a keypoint, in an image 480 pixels high', unit='px', low=0.05, high=20.0)
    landmark_noise: float = option(0.01, 'noise of the position of a landmark', unit='m', low=1e-4, high=1.0)
    min_landmark_spread: float = option(0.2, 'smallest share of a 4 x 4 grid over the image that holds two of them', low=0.0, high=1.0)
    min_landmarks: float = option(20.0, 'soft inlier landmarks from which on their pose takes the place of the first', low=4.0, high=1e4)


@dataclass(frozen=True)
class GatingOptions(Options):
    """Maps of many sub-maps: which of them are asked, and kept (dsac_ros.networks.gating, dsac_ros.ransac.experts)."""

    most_experts: int = option(4, 'sub-maps that the hypotheses of a frame are shared out over, at the most', low=1, high=64)
    parts: int = option(8, 'equal parts of the hypotheses that are shared out; a sub-map that gets none is not run', low=1, high=64)
    searches: int = option(3, 'how often a frame is looked for until it is accepted, or refused for its focal length alone, '
                              'each time in the most probable sub-maps that were not tried, as long as these have a chance', low=1, high=16)
    experts_in_memory: int = option(16, 'sub-maps kept in memory, the last used ones; about 10 MB each', low=4, high=10000)
    preload_distance: float = option(5.0, 'a sub-map whose mapped points are nearer than this to the last pose is read beforehand',
                                     unit='m', low=0.0, high=1e4)
    leak: float = option(0.05, 'probability that a frame is of any sub-map, whatever the one before was of; half where that one was '
                         'refused', low=1e-6, high=1.0)


@dataclass(frozen=True)
class TrackingOptions(Options):
    """What the frames before are used for (dsac_ros.tracking.tracker)."""

    enabled: bool = option(True, 'look for the landmarks around the pose that the frames before lead to expect, and search further only '
                                 'where they do not confirm it; false: every frame by itself')
    radius_px: float = option(48.0, 'how far from where the expected pose projects it a landmark is looked for, in an image 480 pixels '
                              'high', unit='px', low=1.0, high=1000.0)
    keep_share: float = option(0.5, 'least share of the landmarks of the last full search that a tracked frame has to confirm', low=0.0,
                               high=1.0)
    min_landmarks: float = option(40.0, 'least landmarks that a tracked frame has to confirm, since no cell is asked', low=4.0, high=1e6)
    search_every: int = option(60, 'tracked frames after which one is searched in full all the same', low=1, high=100000)
    max_gap: float = option(1.0, 'longest time since the last accepted frame for which there is an expected pose', unit='s', low=0.0,
                            high=60.0)


@dataclass(frozen=True)
class IntegrityOptions(Options):
    """When a pose is good enough to be published (dsac_ros.tracking.integrity)."""

    precision: str = option('medium', 'low: more frames are answered; high: fewer, and surer. Moves the limits of integrity and state that '
                            'are listed in dsac_ros.config.PRECISION; one that is set itself stays', choices=('low', 'medium', 'high'))
    min_inliers: float = threshold(40.0, 'fewest soft inlier cells', low=0.0, high=1e6)
    min_inlier_ratio: float = threshold(0.35, 'smallest share of the usable cells that are inliers, of a pose by cells', low=0.0, high=1.0)
    min_spread: float = threshold(0.4, 'smallest share of a 4 x 4 grid over the image that holds inliers', low=0.0, high=1.0)
    min_landmarks: float = threshold(25.0, 'soft inlier landmarks that make up for few inlier cells', low=4.0, high=1e6)
    sure_landmarks: float = threshold(80.0, 'soft inlier landmarks from which on neither cells nor other landmarks have to agree', low=4.0,
                                      high=1e6)
    min_support: float = threshold(0.03, 'smallest share of the usable cells that agree with a pose by fewer landmarks than that, where '
                                   'the cells were asked', low=0.0, high=1.0)
    min_landmark_share: float = threshold(0.36, 'smallest share of the landmarks matched around such a pose, in a wide search, that agree '
                                          'with it, in the mean over a 4 x 4 grid over the image', low=0.0, high=1.0)
    require_landmarks: bool = threshold(True, 'refuse a pose of a frame without depth that no landmarks confirm, where the map has any')
    max_misfit: float = threshold(2.0, 'largest rms residual of the landmarks that agree, in standard deviations of their noise '
                                  '(estimator.landmark_noise, landmark_noise_px); 2.4 is what chance alone gives', low=0.1, high=100.0)
    max_depth_misfit: float = threshold(0.08, 'where there is depth: how far it may be from that of the landmarks that agree, in the '
                                        'median and as a share of it', low=1e-3, high=10.0)
    max_focal_misfit: float = threshold(0.02, 'how much too long or too short, as a logarithm, landmarks may say for sure that the focal '
                                        'length of camera_info is; not asked of tracked frames', low=0.0, high=10.0)
    max_position_deviation: float = threshold(0.5, 'largest standard deviation of the position along any axis', unit='m', low=0.0, high=1e3)
    max_rotation_deviation: float = threshold(0.2, 'largest standard deviation of the rotation about any axis', unit='rad', low=0.0,
                                              high=10.0)
    min_margin: float = threshold(0.0, 'least lead of the pose over the best candidate of another place (estimator.mode_distance), in '
                                  'logarithms of the likelihood; 0 = off', low=0.0, high=1e9)
    min_posterior: float = threshold(0.9, 'smallest probability of the sub-map that a pose is in, against the other ones and none', low=0.0,
                                     high=1.0)
    map_margin: float = threshold(3.0, 'how far the camera may be outside of the box of the mapped points', unit='m', low=0.0, high=1e4)


@dataclass(frozen=True)
class StateOptions(Options):
    """Which accepted poses are published, and what the node says of itself (dsac_ros.tracking.state)."""

    agreeing: int = option(2, 'accepted frames that have to agree before the first pose is published, and before the next one after the '
                           'track was lost; 1: none has to', low=1, high=100)
    spare: int = option(1, 'frames that may lie between those, refused or in disagreement', low=0, high=1000)
    lost_after: float = threshold(1.0, 'time without a published pose after which the track is lost', unit='s', low=0.1, high=3600.0)
    max_speed: float = threshold(5.0, 'fastest that the camera moves: frames that would need more do not agree', unit='m/s', low=0.0,
                                 high=1e3)
    max_turn: float = threshold(6.0, 'fastest that it turns', unit='rad/s', low=0.0, high=1e3)
    max_odometry_chi2: float = threshold(40.0, 'in place of those two, where odometry is known of both frames: largest squared Mahalanobis '
                                         'distance (6 degrees of freedom) between their motion and that of the odometry; 0 = off', low=0.0,
                                         high=1e9)
    odometry_position_noise: float = threshold(0.1, 'noise of the position that odometry says, per distance', low=0.0, high=10.0)
    odometry_rotation_noise: float = threshold(0.1, 'noise of the rotation, per angle turned', low=0.0, high=10.0)
    odometry_turn_noise: float = threshold(0.02, 'noise of the rotation, per distance', unit='rad/m', low=0.0, high=10.0)
    odometry_position_floor: float = threshold(0.03, 'noise of the position without any motion: what is not modelled, such as bad stamps',
                                               unit='m', low=1e-4, high=10.0)
    odometry_rotation_floor: float = threshold(0.015, 'the same of the rotation', unit='rad', low=1e-4, high=10.0)
    weak_position: float = threshold(0.1, 'standard deviation of the position along any axis from which on a pose counts as weak', unit='m',
                                     low=0.0, high=1e3)
    weak_rotation: float = threshold(0.05, 'standard deviation of the rotation about any axis from which on it does', unit='rad', low=0.0,
                                     high=10.0)


# Prefix -> what a frame is localised with, as parameters of the node, `--set` of an evaluation and sections of config/localize.yaml.
LOCALIZER_GROUPS: dict[str, type[Any]] = {'estimator': EstimatorOptions, 'gating': GatingOptions, 'tracking': TrackingOptions,
                                       'integrity': IntegrityOptions, 'state': StateOptions}

# What integrity.precision sets; medium is the defaults.
PRECISION: dict[str, dict[str, Any]] = {
    'low': {'integrity.min_inliers': 25.0, 'integrity.min_inlier_ratio': 0.25, 'integrity.min_spread': 0.3, 'integrity.min_landmarks': 20.0,
            'integrity.sure_landmarks': 60.0, 'integrity.min_support': 0.02,
            'integrity.min_landmark_share': 0.3, 'integrity.max_misfit': 2.3, 'integrity.max_depth_misfit': 0.15,
            'integrity.max_focal_misfit': 0.05, 'integrity.max_position_deviation': 1.0, 'integrity.max_rotation_deviation': 0.4,
            'state.max_odometry_chi2': 80.0},
    'medium': {},
    'high': {'integrity.min_inliers': 60.0, 'integrity.min_inlier_ratio': 0.45, 'integrity.min_spread': 0.5,
             'integrity.min_landmarks': 40.0, 'integrity.sure_landmarks': 120.0, 'integrity.min_support': 0.05,
             'integrity.min_landmark_share': 0.4, 'integrity.max_misfit': 1.5, 'integrity.max_depth_misfit': 0.05,
             'integrity.max_focal_misfit': 0.01, 'integrity.max_position_deviation': 0.1, 'integrity.max_rotation_deviation': 0.05,
             'integrity.min_margin': 10.0, 'state.agreeing': 3, 'state.max_odometry_chi2': 25.0},
}


def with_precision(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by full name and what integrity.precision among them sets; what is given itself wins."""
    precision = values.get('integrity.precision', 'medium')
    return (PRECISION.get(precision, {}) if isinstance(precision, str) else {}) | dict(values)


@dataclass(frozen=True)
class MappingOptions(Options):
    """Making a map (dsac_ros.training.mapping)."""

    minutes: float = option(5.0, 'all the time that mapping may take', unit='min', low=0.05, high=1e5)
    rgb_only: bool = option(False, 'map from images and poses alone, also where there is depth')
    seed: int = option(0, 'of everything that is drawn at random', low=0, high=2**31 - 1)
    max_frames: int = option(600, 'frames kept of a longer recording, evenly spread', low=10, high=100000)
    held_out_share: float = option(0.06, 'share of the frames kept from training, to calibrate covariances', low=0.01, high=0.5)
    encoding_share: float = option(0.25, 'largest share of the time that goes into encoding images', low=0.05, high=0.9)
    augmented: int = option(5, 'augmented views of every frame beside the frame itself, time allowing', low=0, high=20)
    capacity: int = option(900_000, 'samples in the buffer; 1.6 kB each', low=1000, high=10**8)
    batch: int = option(512, 'samples in a step', low=16, high=65536)
    steps: int = option(0, 'steps to train, in place of the time; 0 = as long as the time allows', low=0, high=10**8)
    learning_rate: float = option(3e-3, 'peak of the one-cycle schedule', low=1e-6, high=1.0)
    weight_decay: float = option(1e-2, 'of AdamW', low=0.0, high=10.0)
    landmarks: int = option(18_000, 'landmarks kept in the map, 82 bytes each; 0 = none', low=0, high=200_000)
    adjust_poses: bool = option(True, 'move the given poses, a centimetre or so, where the images disagree with them and there is '
                                'time; with landmarks, or rgb_only')
    width: int = option(128, 'of the layers of the head', low=16, high=4096)
    cluster_weight: float = option(0.2, 'of the cross entropy of the cluster choice', low=0.0, high=100.0)
    reprojection_weight: float = option(0.02, 'of the reprojection loss where no coordinate is known (rgb_only)', low=0.0, high=100.0)


@dataclass(frozen=True)
class FinetuningOptions(Options):
    """End-to-end training of a map through the RANSAC (dsac_ros.training.finetuning)."""

    modality: str = option('rgb', 'what the head is trained to be localised with', choices=('rgb', 'rgbd'))
    expert: str = option('', 'sub-map to train, of a map that has several; the others stay as they are')
    minutes: float = option(10.0, 'time of training, unless iterations are given; measured at the start and turned into iterations',
                            unit='min', low=0.01, high=1e5)
    iterations: int = option(0, 'steps to train, in place of the time; 0 = as many as the time allows', low=0, high=10**8)
    seed: int = option(0, 'of everything that is drawn at random', low=0, high=2**31 - 1)
    max_frames: int = option(200, 'frames kept of a longer recording, evenly spread; 6 MB each with augmented views', low=10, high=100000)
    held_out_share: float = option(0.06, 'share of the frames kept from training, to choose the best state and to calibrate; as large as '
                                   "mapping's, which then did not train on these either if the recording is the same", low=0.01, high=0.5)
    augmented: int = option(10, 'augmented views of every frame beside the frame itself; with few of them the views are learnt by heart',
                            low=0, high=20)
    batch: int = option(4, 'images in a step', low=1, high=256)
    hypotheses: int = option(128, 'minimal sets drawn for each image', low=8, high=4096)
    bits: float = option(6.0, 'entropy that the choice among them keeps in the mean', unit='bit', low=0.1, high=11.0)
    learning_rate: float = option(3e-5, 'peak of the one-cycle schedule of AdamW', low=1e-8, high=1.0)
    guidance: bool = option(True, 'learn which cells to draw, too; false draws evenly while training')
    last_stage: bool = option(False, "train the encoder's last stage, too, for this sub-map alone; its file grows by 1.2 MB")
    gating: bool = option(False, 'then train gating, too, on all frames; the recordings should show every sub-map of the map')
    cut_off: float = option(20.0, 'pose loss (degrees plus centimetres) beyond which only its square root grows', low=0.1, high=1e6)
    check_every: int = option(100, 'steps between two looks at the held-out frames', low=1, high=10**6)
    patience: int = option(20, 'looks without a better state after which training ends', low=1, high=10**6)
    checkpoint_seconds: float = option(30.0, 'time between two checkpoints', unit='s', low=0.1, high=3600.0)

    @property
    def rgb_only(self) -> bool:
        return self.modality == 'rgb'


@dataclass(frozen=True)
class SourceOptions(Options):
    """What of a bag or data folder is read. Topics are found by type and name where they are not given (dsac_ros.data.opening)."""

    split: str = option('', 'part of a data folder: a name in its splits.json, e.g. val_near (7-Scenes: train, test)')
    colour_topic: str = option('', 'colour images, sensor_msgs Image or CompressedImage')
    depth_topic: str = option('', 'depth images registered to colour: 16UC1 [mm] or 32FC1 [m]')
    info_topic: str = option('', 'sensor_msgs CameraInfo of the colour images')
    pose_topic: str = option('', "reference poses instead of TF: Odometry (linked to the camera by /tf_static; without a link taken for "
                             "the camera's own), PoseStamped or PoseWithCovarianceStamped (the camera's own, optical frame)")
    camera_frame: str = option('', 'TF frame of the camera; default: frame_id of its camera_info')
    map_frame: str = option('', "TF frame that poses are in; default: the root of the camera's chain")
    slop: float = option(10.0, 'largest difference of the stamps of a colour and a depth image of a bag that are one frame', unit='ms',
                         low=0, high=1000)


@dataclass(frozen=True)
class FinetunerOptions(Options):
    """What the finetuner node trains, from what, and how far it stands back behind others. It has no topic to read."""

    map: str = option('', 'Map bundle to start from; it stays as it is. Required.')
    bags: tuple[str, ...] = option((), 'Bags or data folders of one camera, poses in the frame of the map. Required.')
    out: str = option('', 'Map bundle to write; OUT.finetuning beside it holds checkpoint, log and plot. Required.')
    overwrite: bool = option(False, 'Replace a map at out. An interrupted training is gone on with either way.')
    autostart: bool = option(True, 'Train at once; false waits for ~/start.')
    localizer: str = option('', 'Name of the localizer node whose ~/load_map is called with the finished map, e.g. localizer (in the same '
                            'namespace) or /front/localizer; empty: none is.')
    device: str = option('auto', 'Where it trains: auto takes a GPU where there is one; else cpu, cuda or cuda:N.')
    threads: int = option(1, 'CPU threads of the training; 0 leaves it to torch, which takes all cores.', low=0, high=256)
    nice: int = option(10, 'How much the training stands back behind other processes, as of the command nice.', low=0, high=19)
