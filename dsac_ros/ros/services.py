"""What may be asked of a localizer: another map, a full search, a pause. Each answer says what was done, or why not."""
from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.task import Future
from std_srvs.srv import SetBool, Trigger

from dsac_ros.errors import DataError, DsacError
from dsac_ros.ros.messages import matrix_from_pose
from dsac_ros.srv import LoadMap

if TYPE_CHECKING:
    from dsac_ros.ros.localizer_node import LocalizerNode


class Services:
    """~/load_map, ~/relocalize and ~/enable, as long as the node lives."""

    def __init__(self, node: LocalizerNode) -> None:
        self._node = node
        self._loader: threading.Thread | None = None
        # A group of its own: while one answer waits for its map, a second request has to wait and nothing else.
        node.create_service(LoadMap, '~/load_map', self._load_map, callback_group=MutuallyExclusiveCallbackGroup())
        node.create_service(Trigger, '~/relocalize', self._relocalize)
        node.create_service(SetBool, '~/enable', self._enable)

    def close(self, timeout_s: float) -> bool:
        """Wait for a map that is being loaded; False where that takes longer."""
        if self._loader is not None:
            self._loader.join(timeout_s)
        return self._loader is None or not self._loader.is_alive()

    async def _load_map(self, request: LoadMap.Request, response: LoadMap.Response) -> LoadMap.Response:
        if self._node.tracker is None:
            return self._answer(response, False, 'not configured: configure loads the map that the parameter map names')
        loaded = Future()
        self._loader = threading.Thread(target=self._load, args=(request.path, loaded), name='load map', daemon=True)
        self._loader.start()
        try:
            tracker = await loaded
        except Exception as error:  # a map from a stranger may fail in any way; the one in use must not
            reason = str(error) if isinstance(error, DsacError) else f'{type(error).__name__}: {error}'
            return self._answer(response, False, f'{reason}; the map in use stays')
        if self._node.tracker is None:
            return self._answer(response, False, 'the node was cleaned up meanwhile')
        self._node.use(tracker)
        return self._answer(response, True, f'{request.path} in frame {self._node.map_frame}, from the next frame on')

    def _load(self, path: str, loaded: Future) -> None:
        try:
            loaded.set_result(self._node.load(path))
        except Exception as error:
            loaded.set_exception(error)

    def _relocalize(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        worker = self._node.worker
        if worker is None:
            return self._answer(response, False, 'not active: no frames are looked at')
        worker.between_frames(worker.restart)
        return self._answer(response, True, 'the track is forgotten, the next frame is searched in full')

    def _enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        worker = self._node.worker
        if worker is None:
            return self._answer(response, False, 'not active: no frames are looked at')
        if worker.enabled == request.data:
            return self._answer(response, True, f'{"enabled" if request.data else "disabled"} already')
        worker.between_frames(worker.restart)
        worker.enabled = request.data
        return self._answer(response, True, 'frames are localised' if request.data else 'frames are refused until enabled again')

    def _answer(self, response, success: bool, message: str):
        self._node.get_logger().info(message) if success else self._node.get_logger().warning(f'refused: {message}')
        response.success, response.message = success, message
        return response


def initial_pose(node: LocalizerNode, message: PoseWithCovarianceStamped) -> None:
    """Take a message on initialpose as the guess of the next frame, or say why not."""
    worker, frame = node.worker, message.header.frame_id
    if worker is None:
        return
    if frame != node.map_frame:
        node.get_logger().warning(f'initialpose refused: it is in frame {frame!r}, expected the map frame {node.map_frame!r}')
        return
    try:
        map_from_camera = matrix_from_pose(message.pose.pose)
    except DataError as error:
        node.get_logger().warning(f'initialpose refused: {error}')
        return
    if node.robot is not None:  # people point at where the robot is, as RViz does
        map_from_camera = node.robot.map_from_camera(map_from_camera)
        if map_from_camera is None:
            node.get_logger().warning('initialpose refused: it is of the robot, and no image has come whose extrinsics are known')
            return
    worker.between_frames(lambda: worker.expect(map_from_camera))
    node.get_logger().info('initialpose taken as the guess of the next frame')
