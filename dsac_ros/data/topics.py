"""The topics of a bag in, those that hold colour, depth, camera_info and poses out; where it is not plain, an error lists them."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

from dsac_ros.errors import DataError

IMAGES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
INFOS = ('sensor_msgs/msg/CameraInfo',)
POSES = ('nav_msgs/msg/Odometry', 'geometry_msgs/msg/PoseWithCovarianceStamped', 'geometry_msgs/msg/PoseStamped')
TRANSFORMS = ('tf2_msgs/msg/TFMessage',)
DEPTH_WORDS, NO_COLOUR_WORDS = ('depth',), ('depth', 'disparity', 'confidence', 'infra', '/ir/', 'mask', 'label', 'thermal', 'debug')
COLOUR_WORDS = ('color', 'colour', 'rgb')
REGISTERED_WORDS = ('aligned', 'registered', 'to_color', 'to_rgb')
TRANSPORTS = ('/compressedDepth', '/compressed')


@dataclass(frozen=True)
class BagTopics:
    """What to read from a bag; None: found by type and name. camera_frame None: that of camera_info; map_frame None: the root of TF."""

    colour: str | None = None
    depth: str | None = None
    info: str | None = None
    pose: str | None = None
    camera_frame: str | None = None
    map_frame: str | None = None


def base_name(topic: str) -> str:
    """The topic without the name of its image transport."""
    return next((topic[:-len(end)] for end in TRANSPORTS if topic.endswith(end)), topic)


def listing(types: Mapping[str, str]) -> str:
    """Topics and types in one line, for error messages."""
    return ', '.join(f'{topic} [{kind}]' for topic, kind in sorted(types.items())) or 'none at all'


def colour_topic(types: Mapping[str, str], asked: str | None) -> str:
    """The topic of the colour images. Raises DataError where there is none, or several that look alike."""
    if asked:
        return _checked(types, asked, IMAGES, 'colour')
    found = _without_twins([topic for topic in _of(types, IMAGES) if not _has(topic, NO_COLOUR_WORDS)])
    if len(found) > 1:
        found = [topic for topic in found if _has(topic, COLOUR_WORDS)] or found
    if not found:
        raise DataError(f'no topic with colour images (sensor_msgs Image or CompressedImage); the bag has {listing(types)}. Name it with '
                        '--colour-topic')
    return _only(found, 'colour images', '--colour-topic')


def depth_topic(types: Mapping[str, str], asked: str | None) -> str | None:
    """The topic of the depth images, one registered to colour before others; None where the bag has none."""
    if asked:
        return _checked(types, asked, IMAGES, 'depth')
    found = _without_twins([topic for topic in _of(types, IMAGES) if _has(topic, DEPTH_WORDS)])
    if len(found) > 1:
        found = [topic for topic in found if _has(topic, REGISTERED_WORDS)] or found
    return _only(found, 'depth images', '--depth-topic') if found else None


def info_topic(types: Mapping[str, str], asked: str | None, colour: str) -> str:
    """The camera_info of the colour images: the one beside them, or the only one there is."""
    if asked:
        return _checked(types, asked, INFOS, 'camera_info')
    beside = base_name(colour).rpartition('/')[0] + '/camera_info'
    found = _of(types, INFOS)
    if not found:
        raise DataError(f'no camera_info for {colour}: expected sensor_msgs/msg/CameraInfo on {beside}; the bag has {listing(types)}. '
                        'Record it with the images')
    return beside if beside in found else _only(found, f'intrinsics, none beside {colour}', '--info-topic')


def pose_topic(types: Mapping[str, str], asked: str | None) -> str | None:
    """The topic of the reference poses; None where there is none. Raises DataError where there are several."""
    if asked:
        return _checked(types, asked, POSES, 'pose')
    found = _of(types, POSES)
    return _only(found, 'poses', '--pose-topic') if found else None


def _of(types: Mapping[str, str], kinds: tuple[str, ...]) -> list[str]:
    return sorted(topic for topic, kind in types.items() if kind in kinds)


def _has(topic: str, words: tuple[str, ...]) -> bool:
    return any(word in topic.lower() for word in words)


def _without_twins(topics: list[str]) -> list[str]:
    """One of each image: raw before compressed, and compressedDepth before the transport that would make depth a JPEG."""
    rank = {'': 0, '/compressedDepth': 1, '/compressed': 2}
    best: dict[str, str] = {}
    for topic in sorted(topics, key=lambda topic: rank[topic[len(base_name(topic)):]]):
        best.setdefault(base_name(topic), topic)
    return sorted(best.values())


def _only(found: list[str], what: str, flag: str) -> str:
    if len(found) > 1:
        raise DataError(f'several topics could hold {what}: {", ".join(found)}. Choose one with {flag}')
    return found[0]


def _checked(types: Mapping[str, str], asked: str, kinds: tuple[str, ...], what: str) -> str:
    if asked not in types:
        raise DataError(f'the {what} topic {asked} is not in the bag; it has {listing(types)}')
    if types[asked] not in kinds:
        raise DataError(f'the {what} topic {asked} has the type {types[asked]}; expected {" or ".join(kinds)}')
    return asked
