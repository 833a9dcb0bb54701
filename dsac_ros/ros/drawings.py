"""What is seen of a map, a camera and a frame, as messages for RViz."""
from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping

import numpy as np
from geometry_msgs.msg import Point, PoseStamped
from nav_msgs.msg import Path
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from dsac_ros.records import Camera, Estimate
from dsac_ros.ros.messages import set_pose, time_message
from dsac_ros.tracking.state import Decision
from dsac_ros.viewing import shapes
from dsac_ros.viewing.shapes import Extent, shifted
from dsac_ros.viewing.support import Support

FRUSTUM_LIFE_S = 2  # after the last pose it disappears from RViz
FAINT, STRONG = 0.08, 0.35  # opacity of an expert's box, without and with all of the posterior


def frustum_marker(header: Header, camera: Camera, estimate: Estimate, decision: Decision) -> Marker:
    """The camera at its pose, in the colour of the state."""
    marker = Marker(header=header, ns='camera', type=Marker.LINE_LIST, action=Marker.ADD)
    set_pose(marker.pose, estimate.map_from_camera)
    marker.scale.x = 0.01
    marker.lifetime.sec = FRUSTUM_LIFE_S
    marker.color = _colour(shapes.STATE_COLOURS[decision.state.name], 1.0)
    marker.points = [Point(x=x, y=y, z=z) for x, y, z in shapes.frustum(camera).tolist()]
    return marker


def path_message(header: Header, poses: Iterable[tuple[int, np.ndarray]]) -> Path:
    """The newest published poses."""
    path = Path(header=header)
    for stamp_ns, map_from_camera in poses:
        pose = PoseStamped(header=Header(stamp=time_message(stamp_ns), frame_id=header.frame_id))
        set_pose(pose.pose, map_from_camera)
        path.poses.append(pose)
    return path


def inlier_cloud(header: Header, support: Support, camera: Camera) -> PointCloud2:
    """Points of the map that agree with the pose: x, y, z, rgb by residual, and the residual itself in pixels."""
    chosen = support.inlier_N
    residuals = support.residuals_px_N[chosen]
    colours = shapes.residual_colours(residuals, camera.height).astype(np.uint32)
    packed = (colours[:, 0] << 16 | colours[:, 1] << 8 | colours[:, 2]).astype('<u4').view('<f4')
    table = np.column_stack([support.points_N3[chosen].astype('<f4'), packed, residuals.astype('<f4')]).astype('<f4')
    return cloud(header, table, ('x', 'y', 'z', 'rgb', 'residual_px'))


def expert_markers(header: Header, experts: Iterable[Extent], posterior: Mapping[str, float]) -> MarkerArray:
    """A box around the points of each expert, the less transparent the more probable, and its name."""
    markers = [Marker(header=header, action=Marker.DELETEALL)]  # those of another map
    for number, expert in enumerate(experts):
        share = posterior.get(expert.name, 0.0)
        markers += [_box(header, number, expert, share), _label(header, number, expert, share)]
    return MarkerArray(markers=markers)


def cloud(header: Header, table: np.ndarray, names: tuple[str, ...]) -> PointCloud2:
    """(N, len(names)) float32, little endian, as an unordered cloud."""
    step = 4 * len(names)
    message = PointCloud2(header=header, height=1, width=len(table), point_step=step, row_step=step * len(table), is_dense=True)
    message.fields = [PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1) for i, name in enumerate(names)]
    data = array('B')
    data.frombytes(np.ascontiguousarray(table).view(np.uint8).reshape(-1))  # assigning bytes would walk them one by one
    message.data = data
    return message


def _box(header: Header, number: int, expert: Extent, share: float) -> Marker:
    marker = Marker(header=header, ns='extent', id=number, type=Marker.CUBE, action=Marker.ADD)
    set_pose(marker.pose, expert.map_from_box)
    marker.scale.x, marker.scale.y, marker.scale.z = (max(float(v), 0.01) for v in expert.size)
    marker.color = _colour((70, 130, 230), FAINT + (STRONG - FAINT) * share)
    return marker


def _label(header: Header, number: int, expert: Extent, share: float) -> Marker:
    marker = Marker(header=header, ns='name', id=number, type=Marker.TEXT_VIEW_FACING, action=Marker.ADD,
                    text=f'{expert.name} {100 * share:.0f} %')
    set_pose(marker.pose, expert.map_from_box @ shifted(np.array([0.0, 0.0, expert.size[2] / 2])))
    marker.scale.z = 0.2
    marker.color = _colour((255, 255, 255), 1.0)
    return marker


def _colour(rgb: tuple[int, int, int], opacity: float) -> ColorRGBA:
    r, g, b = (v / 255 for v in rgb)
    return ColorRGBA(r=r, g=g, b=b, a=opacity)
