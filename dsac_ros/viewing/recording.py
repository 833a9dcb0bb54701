"""Frames, poses and the map in Rerun: to a file, or to its viewer. Needs the extra `view` (rerun-sdk), and no ROS."""
from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from dsac_ros.data.transforms import quat_xyzw_of
from dsac_ros.errors import DsacError
from dsac_ros.evaluation.metrics import errors_of
from dsac_ros.evaluation.records import FrameResult
from dsac_ros.records import Frame
from dsac_ros.viewing import shapes
from dsac_ros.viewing.shapes import MapView

if TYPE_CHECKING:
    from dsac_ros.viewing.support import Support

REQUIREMENT = 'rerun-sdk>=0.24,<0.42'  # as in setup.py
PATH_POSES, PATH_EVERY = 500, 10  # frames; the whole path with every frame would be most of the file
JPEG_QUALITY = 80


class Recording:
    """One recording; its file appears under its name when the `with` block ends well, and not at all otherwise.

    Args:
        out: the .rrd file, which is replaced where it is there; None opens the viewer.

    Raises DsacError where Rerun is not installed or cannot write.
    """

    def __init__(self, out: Path | None) -> None:
        try:
            import rerun
        except ImportError as error:
            raise DsacError(f'the viewer Rerun is not installed ({error}); pip install "{REQUIREMENT}"') from error
        self._rr, self._stream, self._out = rerun, rerun.RecordingStream('dsac_ros'), out
        self._draft = None if out is None else out.with_name(f'.{out.name}.{os.getpid()}')
        self._path: deque[np.ndarray] = deque(maxlen=PATH_POSES)
        self._reference: list[np.ndarray] = []
        self._frames = 0

    def __enter__(self) -> Recording:
        try:
            with self._writable():
                if self._draft is None:
                    self._stream.spawn(default_blueprint=self._layout())
                else:
                    self._draft.parent.mkdir(parents=True, exist_ok=True)
                    self._stream.save(self._draft, default_blueprint=self._layout())
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                with self._writable():
                    self._finish()
        finally:
            self._discard()

    @contextmanager
    def _writable(self) -> Iterator[None]:
        """What the disk and Rerun say, in one line."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            place = 'the viewer of Rerun' if self._out is None else f'{self._out}: cannot be written'
            raise DsacError(f'{place}: {getattr(error, "strerror", None) or " ".join(str(error).split())}') from error

    def _layout(self) -> Any:
        from rerun import blueprint
        return blueprint.Blueprint(blueprint.Horizontal(
            blueprint.Spatial3DView(origin='map', name='map'),
            blueprint.Vertical(
                blueprint.Spatial2DView(origin='image', name='image'),
                blueprint.TimeSeriesView(origin='figures', name='figures'),
                blueprint.TextLogView(origin='status', name='status'))))

    def _finish(self) -> None:
        """The whole paths, and all that is not written yet."""
        self._strip('map/path', list(self._path), shapes.GREEN)
        if self._reference:
            self._stream.log('map/reference', self._rr.LineStrips3D([np.array(self._reference)], colors=(255, 255, 255)), static=True)
        self._stream.flush()
        self._stream.disconnect()
        if self._draft is not None:
            os.replace(self._draft, self._out)

    def _discard(self) -> None:
        if self._draft is not None:
            with suppress(OSError):  # where there is no such place there is no draft either
                self._draft.unlink()

    def show_map(self, view: MapView) -> None:
        """Its points and the extents of its experts."""
        rr = self._rr
        self._stream.log('map/points', rr.Points3D(view.points_N3, radii=0.01, colors=(150, 150, 150)), static=True)
        self._stream.log('map/experts', rr.Boxes3D(
            centers=[e.map_from_box[:3, 3] for e in view.experts], sizes=[e.size for e in view.experts],
            quaternions=[quat_xyzw_of(e.map_from_box) for e in view.experts], labels=[e.name for e in view.experts],
            colors=(70, 130, 230)), static=True)

    def show(self, result: FrameResult, frame: Frame | None = None, support: Support | None = None) -> None:
        """A frame and what became of it. frame, support: where they are known; without a frame no image and no frustum."""
        self._stream.set_time('frame', sequence=self._frames)
        self._stream.set_time('stamp', duration=result.stamp_ns / 1e9)
        self._frames += 1
        if frame is not None and support is not None:
            self._image(result, frame, support)
        shown = result.published if result.published is not None else result.answered
        self._camera(result, frame, support) if shown else self._stream.log('map/now', self._rr.Clear(recursive=True))
        if result.reference is not None:
            self._reference.append(result.reference[:3, 3])
        self._figures(result)
        text = f'{result.state}: {", ".join(result.reasons) or ("published" if shown else "not published")}'
        self._stream.log('status', self._rr.TextLog(text, level='INFO' if shown else 'WARN'))

    def _image(self, result: FrameResult, frame: Frame, support: Support) -> None:
        drawn = shapes.with_support(frame.image, support, shapes.caption(support, result.state, result.reasons))
        jpeg = cv2.imencode('.jpg', drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        self._stream.log('image', self._rr.EncodedImage(contents=jpeg.tobytes(), media_type='image/jpeg'))

    def _camera(self, result: FrameResult, frame: Frame | None, support: Support | None) -> None:
        rr, pose = self._rr, result.map_from_camera
        self._path.append(pose[:3, 3])
        if self._frames % PATH_EVERY == 1:
            self._strip('map/path', list(self._path), shapes.GREEN)
        colour = shapes.STATE_COLOURS.get(result.state, shapes.GREEN)
        if frame is None:
            self._stream.log('map/now/camera', rr.Points3D([pose[:3, 3]], radii=0.03, colors=colour))
        else:
            lines = shapes.frustum(frame.camera) @ pose[:3, :3].T + pose[:3, 3]
            self._stream.log('map/now/camera', rr.LineStrips3D(lines.reshape(8, 2, 3), colors=colour))
        if result.covariance is not None:
            half_axes, rotation = shapes.ellipsoid(result.covariance[:3, :3])
            turned = np.eye(4)
            turned[:3, :3] = rotation
            self._stream.log('map/now/covariance_90', rr.Ellipsoids3D(
                centers=[pose[:3, 3]], half_sizes=[half_axes], quaternions=[rr.Quaternion(xyzw=quat_xyzw_of(turned))], colors=colour))
        if support is not None:
            chosen = support.inlier_N
            colours = shapes.residual_colours(support.residuals_px_N[chosen], frame.camera.height)
            self._stream.log('map/now/inliers', rr.Points3D(support.points_N3[chosen], radii=0.02, colors=colours))

    def _figures(self, result: FrameResult) -> None:
        translation_m, rotation_deg = errors_of(result) or (None, None)
        sigma_m = None if result.covariance is None else float(np.sqrt(max(0.0, np.trace(result.covariance[:3, :3]))))
        figures = {'landmarks': result.landmarks, 'inliers': result.inliers, 'position_error_m': translation_m,
                   'rotation_error_deg': rotation_deg, 'position_sigma_m': sigma_m, 'latency_ms': result.latency_ms}
        for name, value in figures.items():
            if value is not None and np.isfinite(value):
                self._stream.log(f'figures/{name}', self._rr.Scalars(value))

    def _strip(self, name: str, places: list[np.ndarray], colour: tuple[int, int, int]) -> None:
        if len(places) > 1:
            self._stream.log(name, self._rr.LineStrips3D([np.array(places)], colors=colour))
