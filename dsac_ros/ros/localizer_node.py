"""The managed node `localizer`: its life, its parameters and its subscriptions. Wiring only.

Callbacks store (intake), one worker thread decodes, localises and publishes; the executor never waits for the network once configured.
"""
from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import rclpy
from lifecycle_msgs.srv import ChangeState
from rclpy.clock import JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter

from dsac_ros.config import NodeOptions
from dsac_ros.errors import ConfigError, DsacError
from dsac_ros.ros import parameters
from dsac_ros.ros.complaints import Complaints
from dsac_ros.ros.diagnostics import Diagnostics
from dsac_ros.ros.inputs import Inputs
from dsac_ros.ros.intake import Intake
from dsac_ros.ros.outlets import Outlets
from dsac_ros.ros.services import Services, initial_pose
from dsac_ros.ros.worker import Worker

if TYPE_CHECKING:
    from dsac_ros.tracking.tracker import Tracker

JOIN_S = 0.7
WAKE_S = 0.5
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
        self.inputs: Inputs | None = None
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

    def end(self) -> bool:
        """Stop all that runs and destroy the node; False where a thread has not ended within its time."""
        ended = [self.close(), self.requests.close(JOIN_S)]
        self.destroy_node()
        return all(ended)

    def close(self) -> bool:
        """Stop listening and localising; what the worker is at is finished first, False where that takes longer than JOIN_S."""
        if self.inputs is not None:
            self.inputs.close()
        ended = self.worker is None or self.worker.close(JOIN_S)
        if not ended:
            self.get_logger().warning(f'the frame in work was not done within {JOIN_S} s; it is not published')
        self.worker = self.intake = self.inputs = None
        return ended

    def _attempt(self, what: str, action: Callable[[], None], undo: Callable[[], object]) -> TransitionCallbackReturn:
        """A transition that fails says why, leaves nothing behind and may be tried again."""
        try:
            action()
        except Exception as error:
            undo()
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
        localizer.warm_up(None, self.options.modality)
        return Tracker(localizer, self._groups['tracking'], self._groups['gating'])

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
        if loaded:
            from dsac_ros.localizer import release_memory
            release_memory()

    def _listen(self) -> None:
        self.tracker.forget()
        self.intake = Intake(self.options.modality == 'rgbd', self.options.sync_slop, self.options.depth_wait)
        self.worker = Worker(self, self.options, self._groups['state'], self.intake, self.tracker, self.outlets)
        self.inputs = Inputs(self, self.options, self.intake, lambda message: initial_pose(self, message))
        self.outlets.news('starting', self.worker.map_frame)
        self.get_logger().info(f'map {self.options.map} in frame {self.worker.map_frame}; '
                               f'waiting for {self.inputs.streams["image"].topic_name}')

    def _apply_parameters(self, given: list[Parameter]) -> None:
        # Range, type and read-only have been checked by rclpy, from the descriptors.
        self._groups = parameters.changed(self._groups, {parameter.name: parameter.value for parameter in given})
        if self.tracker is not None:
            self.tracker.localizer.integrity = self._groups['integrity']

    def _time_jumped(self, _: TimeJump) -> None:
        if self.intake is not None:
            self.intake.restart()


def _init(arguments: list[str] | None) -> None:
    try:
        rclpy.init(args=arguments)
    except RuntimeError as error:  # rcl's own error, for arguments or parameter files that it cannot read
        raise ConfigError(str(error)) from error


def spin(node: Node) -> None:
    """Run the node's callbacks until its context ends.

    rclpy's signal handler wakes the executor before a thread of its own ends the context. An executor that was quick to wait again would
    then sleep until the next message, so this one wakes by itself. What a callback raises is said and ends nothing.
    """
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    complaints = Complaints(node.get_logger().error)
    while node.context.ok():
        try:
            executor.spin_once(WAKE_S)
        except ExternalShutdownException:
            return
        except Exception as error:
            if node.context.ok():
                complaints.say(f'internal_error {type(error).__name__}', traceback.format_exc())


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM (0), or say in one line why it cannot start (1)."""
    node, code = None, 0
    try:
        _init(arguments)
        node = LocalizerNode()
        if node.options.autostart and not node.start():
            code = 1
        else:
            spin(node)
    except KeyboardInterrupt:
        pass
    except (DsacError, ParameterException) as error:
        print(f'localizer: {error}', file=sys.stderr)
        code = 1
    finally:
        # An impatient second Ctrl-C must not turn an orderly end into a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        ended = node is None or node.end()
        rclpy.try_shutdown()
    if not ended:
        # A thread that is still in torch when the interpreter goes makes the process abort (exit code 134).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == '__main__':
    sys.exit(main())
