"""What is drawn of a map and of a camera in it, as arrays: RViz (dsac_ros.ros.pictures) and Rerun (dsac_ros.viewing.recording) share it."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from dsac_ros.geometry.camera import bearings
from dsac_ros.records import Camera

if TYPE_CHECKING:
    from dsac_ros.maps.site import Site
    from dsac_ros.viewing.support import Support

FRUSTUM_M = 0.3  # how far from the camera its image is drawn
WORST_PX = 4.0  # residual of the last colour, in an image 480 pixels high
CHI2_90 = 6.251  # 90 % of chi-square with three degrees of freedom
GREEN, YELLOW, RED = (60, 200, 80), (240, 200, 40), (230, 60, 50)
STATE_COLOURS = {'TRACKING': GREEN, 'DEGRADED': YELLOW, 'INITIALISING': YELLOW, 'LOST': RED}


@dataclass(frozen=True, eq=False)
class Extent:
    """The box of the mapped points of an expert: its pose in the map (4, 4) and its size along its own axes [m]."""

    name: str
    map_from_box: np.ndarray
    size: np.ndarray


@dataclass(frozen=True, eq=False)
class MapView:
    """points_N3: the landmarks, or without any the cluster centres of the expert [m, map frame]."""

    points_N3: np.ndarray
    experts: tuple[Extent, ...]


def map_view(site: Site) -> MapView:
    """What there is to see of a map; reads all of it. Raises MapError."""
    return MapView(np.concatenate([mapped_points(site, index) for index in range(len(site.entries))]), extents(site))


def mapped_points(site: Site, index: int) -> np.ndarray:
    """(N, 3) of one sub-map, as in MapView. Raises MapError."""
    bundle, site_from_map_44 = site.read(index), site.entries[index].site_from_map_44
    mapped = bundle.landmarks.points_L3 if bundle.landmarks else bundle.expert.centres
    return mapped.cpu().numpy() @ site_from_map_44[:3, :3].T + site_from_map_44[:3, 3]


def extents(site: Site) -> tuple[Extent, ...]:
    """Of all experts, as the manifest has them."""
    return tuple(Extent(entry.name, entry.site_from_map_44 @ shifted(np.array(entry.centre)), np.array(entry.extent))
                 for entry in site.entries)


def shifted(place_3: np.ndarray) -> np.ndarray:
    """(4, 4) a frame at this place, not turned."""
    out = np.eye(4)
    out[:3, 3] = place_3
    return out


def frustum(camera: Camera) -> np.ndarray:
    """(16, 3) points in the camera's frame, two for each line: four rays to the corners of the image, and its frame."""
    last = np.array([camera.width - 1.0, camera.height - 1.0])
    rays = bearings(camera, np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]) * last)
    corners = FRUSTUM_M * rays / np.maximum(rays[:, 2:], 0.2)  # of a fisheye the corners may lie behind the camera
    origin = np.zeros(3)
    return np.concatenate([[a, b] for a, b in zip([origin] * 4, corners)] + [[a, b] for a, b in zip(corners, np.roll(corners, -1, 0))])


def residual_colours(residuals_px: np.ndarray, image_height: int) -> np.ndarray:
    """(N, 3) uint8: green where there is none, over yellow to red at WORST_PX."""
    share = np.clip(residuals_px / (WORST_PX * image_height / 480), 0.0, 1.0)
    ends = np.array([GREEN, YELLOW, RED], float)
    return np.stack([np.interp(share, [0.0, 0.5, 1.0], ends[:, channel]) for channel in range(3)], 1).round().astype(np.uint8)


def with_support(image: np.ndarray, support: Support, lines: list[str]) -> np.ndarray:
    """A copy of the image (H, W, 3) with every inlier where it was seen, in the colour of its residual, a line to where the pose puts it,
    what does not agree in grey, and lines of text."""
    out = np.ascontiguousarray(image).copy()
    radius = max(2, out.shape[0] // 160)
    colours = residual_colours(support.residuals_px_N, out.shape[0])
    limit = 4 * np.array(out.shape[1::-1])  # OpenCV draws with 16 bits
    for at, to, colour, inlier in zip(support.seen_N2, support.expected_N2, colours, support.inlier_N):
        if not ((np.abs(at) < limit) & (np.abs(to) < limit)).all():
            continue
        centre = tuple(int(v) for v in np.rint(at))
        if inlier:
            cv2.line(out, centre, tuple(int(v) for v in np.rint(to)), colour.tolist(), 1, cv2.LINE_AA)
        cv2.circle(out, centre, radius, colour.tolist() if inlier else (128, 128, 128), 1, cv2.LINE_AA)
    for row, text in enumerate(lines):
        place = (8, (row + 1) * max(14, out.shape[0] // 24))
        for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(out, text, place, cv2.FONT_HERSHEY_SIMPLEX, out.shape[0] / 900, colour, width, cv2.LINE_AA)
    return out


def caption(support: Support, state: str, reasons: tuple[str, ...]) -> list[str]:
    """The lines of text of such an image."""
    return [f'{state}: {int(support.inlier_N.sum())} of {len(support.inlier_N)} {support.kind} agree', *reasons]


def ellipsoid(covariance_33: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half axes (3,) [m] and rotation (3, 3) of the ellipsoid that holds 90 % of a normal distribution."""
    variances, axes = np.linalg.eigh(covariance_33)
    return np.sqrt(CHI2_90 * np.maximum(variances, 0.0)), axes * np.sign(np.linalg.det(axes))
