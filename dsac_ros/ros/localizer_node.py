"""The managed node `localizer`: its life, its parameters and its subscriptions. Wiring only.

Callbacks store (intake), one worker thread decodes, localises and publishes; the executor never waits for the network once configured.
"""
from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.exceptions import ParameterNotDeclaredException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter

from dsac_ros.config import NodeOptions
from dsac_ros.errors import ConfigError, DsacError
from dsac_ros.ros import parameters
from dsac_ros.ros.diagnostics import Diagnostics
from dsac_ros.ros.frames import check_frames
from dsac_ros.ros.images import is_rectified
from dsac_ros.ros.inputs import Inputs
from dsac_ros.ros.intake import Intake
from dsac_ros.ros.outlets import Outlets
from dsac_ros.ros.robot import Robot
from dsac_ros.ros.running import run
from dsac_ros.ros.services import Services, initial_pose
from dsac_ros.ros.worker import Worker

if TYPE_CHECKING:
    from dsac_ros.tracking.tracker import Tracker

JOIN_S = 0.7
RCLError = rclpy_implementation.RCLError


class LocalizerNode(LifecycleNode):
    """configure loads and warms up the map, activate subscribes, deactivate stops, cleanup frees. Raises ConfigError for bad parameters.

    arguments: those of rclpy.node.Node, such as context, namespace or parameter_overrides.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__('localizer', **arguments)
        self._groups = parameters.declare(self, parameters.GROUPS['localizer'])
        self.options: NodeOptions = self._groups['']
        self.add_post_set_parameters_callback(self._apply_parameters)
        self.outlets = Outlets(self, self.options)
        self.outlets.news('unconfigured')
        self.tracker: Tracker | None = None  # from configure to cleanup; torch is imported then
        self.intake: Intake | None = None  # this and what follows from activate to deactivate
        self.worker: Worker | None = None
        self._unfinished: Worker | None = None  # closed, and still at its last frame
        self.inputs: Inputs | None = None
        self.robot: Robot | None = None  # with the modes of TF that have one
        self.requests = Services(self)
        Diagnostics(self)
        self._answer_request = self._service_change_state.callback
        self._service_change_state.callback = self._change_state
        self._jump_handle = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True), post_callback=self._time_jumped)

    def start(self) -> bool:
        """Configure and activate, as a lifecycle manager would; False where a transition failed, which then has said why."""
        return all(trigger() == TransitionCallbackReturn.SUCCESS for trigger in (self.trigger_configure, self.trigger_activate))

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._attempt('configure', self._load, self._release)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._attempt('activate', self._listen, self.close)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.close()
        self.outlets.news('inactive')
        return TransitionCallbackReturn.SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        self.outlets.news('unconfigured')
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.close()
        self._release()
        self.outlets.news('finalized')
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Of an error that no transition has foreseen: back to unconfigured."""
        self.close()
        return self.on_cleanup(state)

    def _change_state(self, request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
        # rclpy lets a transition that the state does not have, asked for by anybody, end the executor.
        try:
            return self._answer_request(request, response)
        except RCLError as error:
            self.get_logger().warning(f'transition {request.transition.label or request.transition.id} refused: {error}')
            return ChangeState.Response(success=False)

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """As rclpy's; an unknown name is answered with the nearest known one."""
        try:
            return super().set_parameters_atomically(parameter_list)
        except ParameterNotDeclaredException:
            return parameters.refusal(self._parameters, [parameter.name for parameter in parameter_list])

    def end(self) -> bool:
        """Stop all that runs and destroy the node; False where a thread has not ended within its time."""
        ended = [self.close(), self.requests.close(JOIN_S)]
        self.destroy_node()
        return all(ended)

    def close(self) -> bool:
        """Stop listening and localising; what the worker is at is finished first, False where that takes longer than JOIN_S.

        Its thread is then still inside of the tracker, and no other may begin before it is done.
        """
        if self.inputs is not None:
            self.inputs.close()
        closing = self.worker or self._unfinished
        ended = closing is None or closing.close(JOIN_S)
        self._unfinished = None if ended else closing
        if not ended:
            self.get_logger().warning(f'the frame in work was not done within {JOIN_S} s; it is not published')
        if self.robot is not None:
            self.robot.close()
        self.worker = self.intake = self.inputs = self.robot = None
        return ended

    def _attempt(self, what: str, action: Callable[[], None], undo: Callable[[], object]) -> TransitionCallbackReturn:
        """A transition that fails says why, leaves nothing behind and may be tried again."""
        try:
            action()
        except Exception as error:
            undo()
            if self.context.ok():  # else a signal came in between: nothing is wrong, and nobody can be told
                self.get_logger().error(f'cannot {what}: {error if isinstance(error, DsacError) else traceback.format_exc()}')
                self.outlets.news(f'cannot {what}: {error}')
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def load(self, path: str) -> Tracker:
        """A map on its device, warmed up. Raises DsacError. Any thread may call this."""
        if not path:
            raise ConfigError('no map given; name the path of a map bundle, as the parameter in -p map:=ROOM.dsacmap')
        import torch

        from dsac_ros.localizer import Localizer
        from dsac_ros.tracking.tracker import Tracker
        torch.set_num_threads(self.options.threads or max(1, (os.cpu_count() or 2) // 2))
        localizer = Localizer.from_map(path, self.options.device, self._groups['estimator'], self._groups['integrity'],
                                       self._groups['gating'])
        tracker = Tracker(localizer, self._groups['tracking'], self._groups['gating'])
        check_frames(self.options, self.options.map_frame or tracker.map_frame)
        localizer.warm_up(None, self.options.modality)
        return tracker

    def use(self, tracker: Tracker) -> None:
        """Localise in this map from the next frame on."""
        self.tracker = tracker
        tracker.localizer.integrity = self._groups['integrity']  # set since it began to load
        if self.worker is not None:
            worker = self.worker
            worker.between_frames(lambda: worker.use(tracker))

    @property
    def map_frame(self) -> str:
        """Frame that poses are in; '' before configuration."""
        return self.options.map_frame or ('' if self.tracker is None else self.tracker.map_frame)

    def _load(self) -> None:
        self.tracker = self.load(self.options.map)
        self.outlets.news('inactive')

    def _release(self) -> None:
        loaded, self.tracker = self.tracker is not None, None
        self.outlets.pictures.forget()
        if loaded:
            from dsac_ros.localizer import release_memory
            release_memory()

    def _listen(self) -> None:
        if self._unfinished is not None and self._unfinished.is_alive():
            raise DsacError('the frame in work is not done yet; activate again')
        self._unfinished = None
        self.tracker.forget()
        self.intake = Intake(self.options.modality == 'rgbd', self.options.sync_slop, self.options.depth_wait)
        if self.options.tf_mode in ('map_to_odom', 'map_to_base'):
            self.robot = Robot(self, self.options, self.map_frame, self.outlets.send_transform)
        self.inputs = Inputs(self, self.options, self.intake, lambda message: initial_pose(self, message))
        rectified = is_rectified(self.inputs.streams['image'].topic_name)
        self.worker = Worker(self, self.options, self._groups['state'], self.intake, self.tracker, self.outlets, self.robot, rectified)
        self.outlets.news('starting', self.worker.map_frame)
        self.get_logger().info(f'map {self.options.map} in frame {self.worker.map_frame}; '
                               f'waiting for {self.inputs.streams["image"].topic_name}')

    def _apply_parameters(self, given: list[Parameter]) -> None:
        # Checked by rclpy, from the descriptors, and by parameters.declare.
        self._groups = parameters.changed(self._groups, {parameter.name: parameter.value for parameter in given})
        if self.tracker is not None:
            self.tracker.localizer.integrity = self._groups['integrity']
        if self.worker is not None:
            self.worker.between_frames(partial(self.worker.judge_by, self._groups['state']))

    def _time_jumped(self, _: TimeJump) -> None:
        if self.intake is not None:
            self.intake.restart()
        if self.robot is not None:
            self.robot.forget()


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM (0), or say in one line why it cannot start (1)."""
    return run('localizer', LocalizerNode, lambda node: not node.options.autostart or node.start(), arguments)


if __name__ == '__main__':
    sys.exit(main())
