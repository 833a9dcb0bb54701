"""From textured rectangles, a pinhole camera and a pose to an RGB image and exact depth.

Seen through a pinhole, a rectangle is a projective map from the pixel (x, y, 1) to (a, b, 1) / z, a and b metres on the rectangle,
z its depth: three affine functions of the pixel. The rectangle covers the pixels where 0 <= a <= width and 0 <= b <= height, four
half planes, so each row of the image holds one interval of it. This needs no clipping: what lies behind the camera fails the tests.
A z-buffer of 1/z picks the nearest face of each pixel; its colour comes from a pyramid of its texture at the level that fits the
size of a texel there.
"""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from dsac_ros.data.synthetic import pictures
from dsac_ros.data.synthetic.building import Building
from dsac_ros.data.synthetic.lighting import lightness
from dsac_ros.data.synthetic.room import Face, Room
from dsac_ros.records import Camera

STEPS_PER_OCTAVE = 2  # levels of a texture pyramid per halving: finer than usual, so that the change of level is not seen
SHARPEN = 0.15  # octaves finer than one texel per pixel: the optics blur a little afterwards
SHOULDER = 1.3  # how much bright colours are compressed: no clipping, so that walls near a lamp keep their texture
POSTERS = (pictures.poster, pictures.framed)  # what hangs on walls in other pictures in a near-twin of a room
EDGE_PX = 1e-6  # tolerance of coverage, so that no crack opens between neighbouring faces


def _pyramid(texture: np.ndarray) -> list[np.ndarray]:
    """The texture (h, w, 3) uint8 and its copies, each smaller by the square root of 2, down to 2 pixels."""
    levels = [texture]
    while min(levels[-1].shape[:2]) > 2 and len(levels) < 8 * STEPS_PER_OCTAVE:
        shrink = 2 ** (len(levels) / STEPS_PER_OCTAVE)
        size = (max(round(texture.shape[1] / shrink), 1), max(round(texture.shape[0] / shrink), 1))
        levels.append(cv2.resize(levels[max(len(levels) - 2, 0)], size, interpolation=cv2.INTER_AREA))
    return levels


@dataclass(frozen=True)
class _Textured:
    """A face with its texture pyramid; `scales`: pixels per metre (right, down) of each level."""

    levels: list[np.ndarray]
    scales: list[np.ndarray]


def _paint(face: Face, light: np.ndarray, seed: list[int], tpm: float) -> _Textured:
    """Paint and light a face; its random numbers are its own, so that faces do not depend on each other."""
    width, height = (max(round(s * tpm), 4) for s in face.size)
    painted = face.painter(np.random.default_rng(seed), height, width, tpm)
    lit = painted * cv2.resize(-SHOULDER * light, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    white = 255 / (1 - np.exp(-SHOULDER))
    levels = _pyramid(cv2.convertScaleAbs(cv2.exp(lit), alpha=-white, beta=white))
    return _Textured(levels, [np.array(level.shape[1::-1]) / np.array(face.size) for level in levels])


def _sides(camera: Camera) -> np.ndarray:
    """Unit normals (4, 3), inward, of the planes through the camera that bound what the image shows."""
    left, right = (-0.5 - camera.cx) / camera.fx, (camera.width - 0.5 - camera.cx) / camera.fx
    top, bottom = (-0.5 - camera.cy) / camera.fy, (camera.height - 0.5 - camera.cy) / camera.fy
    normals = np.array([[1, 0, -left], [-1, 0, right], [0, 1, -top], [0, -1, bottom]])
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


class Renderer:
    """Draws one room or building; threads may share it, since drawing changes nothing in it."""

    def __init__(self, place: Room | Building, texels_per_metre: float = 400.0) -> None:
        cells = place.cells if isinstance(place, Building) else ((np.eye(4), place),)
        faces, self._textures = [], []
        for map_from_room, room in cells:
            own = room.faces()
            seeds = [[room.seed, 5, index, room.posters if face.painter in POSTERS else 0] for index, face in enumerate(own)]
            with ThreadPoolExecutor(2) as pool:
                self._textures += pool.map(_paint, own, lightness(room, own), seeds, [texels_per_metre] * len(own))
            faces += [face.placed(map_from_room) for face in own]
        self._corner_F3 = np.stack([f.corner for f in faces])
        self._right_F3 = np.stack([f.right for f in faces])
        self._down_F3 = np.stack([f.down for f in faces])
        self._size_F2 = np.array([f.size for f in faces])

    def render(self, camera: Camera, map_from_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 RGB and depth (H, W) float32 metres along the optical axis (0: nothing there)."""
        if camera.distortion_model != 'none':
            raise ValueError(f'the renderer draws pinhole images, not {camera.distortion_model}: set distortion_model to none')
        index_F, maps_F33 = self._facing(camera, map_from_camera)
        inverse_depth, nearest, windows = self._scan(camera, index_F, maps_F33)
        image = np.zeros((camera.height, camera.width, 3), np.uint8)
        counts = np.bincount(nearest.ravel() + 1, minlength=len(index_F) + 1)[1:]
        for k in np.flatnonzero(counts):
            self._draw(image, nearest, inverse_depth, int(k), windows[k], self._textures[index_F[k]], maps_F33[k])
        with np.errstate(divide='ignore'):
            depth = np.where(inverse_depth > 0, 1 / inverse_depth, 0).astype(np.float32)
        return image, depth

    def _facing(self, camera: Camera, map_from_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Faces seen from their front, and for each the map (3, 3) from pixels (x, y, 1) to (a, b, 1) / z."""
        camera_from_map_R = map_from_camera[:3, :3].T
        corner = (self._corner_F3 - map_from_camera[:3, 3]) @ camera_from_map_R.T
        right, down = self._right_F3 @ camera_from_map_R.T, self._down_F3 @ camera_from_map_R.T
        distance = (np.cross(right, down) * corner).sum(-1)  # of the camera from the plane, positive in front of it
        far = corner[:, 2] + np.maximum(right[:, 2] * self._size_F2[:, 0], 0) + np.maximum(down[:, 2] * self._size_F2[:, 1], 0)
        middle = corner + (right * self._size_F2[:, :1] + down * self._size_F2[:, 1:]) / 2
        radius = np.hypot(*self._size_F2.T) / 2
        seen = (distance > 1e-6) & (far > 0)
        for side in _sides(camera):
            seen &= middle @ side > -radius
        index = np.flatnonzero(seen)
        ray_from_face = np.stack([right[index], down[index], corner[index]], -1)
        return index, np.linalg.inv(ray_from_face) @ np.linalg.inv(camera.matrix())

    def _intervals(self, camera: Camera, index_F: np.ndarray, maps_F33: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and last column (F, H) that each face covers in each row; last < first where none."""
        a, b, w = maps_F33[:, 0], maps_F33[:, 1], maps_F33[:, 2]
        wide, high = self._size_F2[index_F].T[..., None]
        edges = np.stack([a, wide * w - a, b, high * w - b], 1)  # (F, 4, 3): not negative inside
        slope = np.where(np.abs(edges[..., 0]) < 1e-15, 1e-15, edges[..., 0])[..., None]
        rest = edges[..., 1:2] * np.arange(camera.height) + edges[..., 2:]
        crossing = -rest / slope
        first = np.where(slope > 0, crossing, -np.inf).max(1)
        last = np.where(slope < 0, crossing, np.inf).min(1)
        return (np.ceil(first - EDGE_PX).clip(0, camera.width).astype(np.int32),
                np.floor(last + EDGE_PX).clip(-1, camera.width - 1).astype(np.int32))

    def _scan(self, camera: Camera, index_F: np.ndarray, maps_F33: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[int, tuple[int, ...]]]:
        """1/z (H, W) float32 of the nearest face, 0 for none; its position in index_F (H, W) int32, -1 for none; windows of the faces."""
        inverse_depth = np.zeros((camera.height, camera.width), np.float32)
        nearest = np.full((camera.height, camera.width), -1, np.int32)
        first, last = self._intervals(camera, index_F, maps_F33)
        covered, windows = last >= first, {}
        for k in np.flatnonzero(covered.any(1)):
            rows = np.flatnonzero(covered[k])
            y0, y1 = rows[0], rows[-1] + 1
            x0, x1 = first[k, rows].min(), last[k, rows].max() + 1
            windows[k] = (x0, y0, x1, y1)
            columns = np.arange(x0, x1, dtype=np.int32)
            slope_x, slope_y, offset = maps_F33[k, 2]
            own = (slope_x * columns).astype(np.float32) + (slope_y * np.arange(y0, y1) + offset).astype(np.float32)[:, None]
            window = inverse_depth[y0:y1, x0:x1]
            wins = own > window
            wins &= columns >= first[k, y0:y1, None]
            wins &= columns <= last[k, y0:y1, None]
            np.copyto(window, own, where=wins)
            np.copyto(nearest[y0:y1, x0:x1], np.int32(k), where=wins)
        return inverse_depth, nearest, windows

    @staticmethod
    def _draw(image: np.ndarray, nearest: np.ndarray, inverse_depth: np.ndarray, k: int, window: tuple[int, ...], textured: _Textured,
              face_from_pixel: np.ndarray) -> None:
        """Colour the pixels of one face; they lie in the window (x0, y0, x1, y1)."""
        left, top, right, bottom = window
        mask = cv2.inRange(nearest[top:bottom, left:right], k, k)
        dx, dy, width, height = cv2.boundingRect(mask)
        x0, y0 = left + dx, top + dy
        mask, near = mask[dy:dy + height, dx:dx + width], inverse_depth[y0:y0 + height, x0:x0 + width]
        low, high, _, _ = cv2.minMaxLoc(near, mask)
        # the area of a pixel on the face is |det| z^3: at which 1/z each level of the pyramid starts to be too fine
        area = abs(np.linalg.det(face_from_pixel)) * np.prod(textured.scales[0])
        last = len(textured.levels) - 1

        def level(inverse: float) -> int:
            octaves = 0.5 * np.log2(area / inverse ** 3) - SHARPEN
            return int(np.clip(np.floor(octaves * STEPS_PER_OCTAVE + 0.5), 0, last))

        finest, coarsest = level(high), level(low)
        for step in range(finest, coarsest + 1):
            part, (px, py, pw, ph) = mask, (0, 0, width, height)
            if coarsest > finest:
                bounds = [(area / 4 ** ((s - 0.5) / STEPS_PER_OCTAVE + SHARPEN)) ** (1 / 3) for s in (step, step + 1)]
                upper, lower = (np.inf if step == finest else bounds[0]), (0.0 if step == coarsest else bounds[1])
                part = cv2.bitwise_and(mask, cv2.compare(near, lower, cv2.CMP_GT))
                part = cv2.bitwise_and(part, cv2.compare(near, min(upper, 1e9), cv2.CMP_LE))
                px, py, pw, ph = cv2.boundingRect(part)
                if pw == 0:
                    continue
                part = part[py:py + ph, px:px + pw]
            scale_x, scale_y = textured.scales[step]
            texel_from_face = np.array([[scale_x, 0, -0.5], [0, scale_y, -0.5], [0, 0, 1]])
            pixel_from_part = np.array([[1, 0, x0 + px], [0, 1, y0 + py], [0, 0, 1]], np.float64)
            colours = cv2.warpPerspective(textured.levels[step], texel_from_face @ face_from_pixel @ pixel_from_part, (pw, ph),
                                          flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
            target = image[y0 + py:y0 + py + ph, x0 + px:x0 + px + pw]
            cv2.copyTo(colours, part, target)
