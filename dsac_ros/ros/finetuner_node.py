"""The node `finetuner`: end-to-end training of a map beside a localizer. Wiring only: what trains is a process of its own.

All state is of the executor's thread: a timer looks what the process has told.
"""
from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from rclpy.task import Future
from std_srvs.srv import SetBool, Trigger

from dsac_ros.cli import INTERRUPTED
from dsac_ros.config import FinetunerOptions
from dsac_ros.errors import ConfigError
from dsac_ros.msg import FinetuneProgress
from dsac_ros.ros import parameters
from dsac_ros.ros.diagnostics_publisher import ERROR, OK, WARN, DiagnosticsPublisher, Finding
from dsac_ros.ros.running import run
from dsac_ros.ros.training_process import TrainingProcess, command_line
from dsac_ros.srv import LoadMap
from dsac_ros.training.watching import Progress

LOOK_S = 0.1
PUBLISH_S = 1.0
LEAVE_S = 3.0  # launch sends SIGTERM 5 s after SIGINT
HAND_OVER_S = 10.0  # to find the localizer
ANSWER_S = 60.0  # for it to load the map
SILENT_S = 60.0  # a training without a word for so long is worth a look
STAGES = {'read': FinetuneProgress.STARTING, 'encode': FinetuneProgress.ENCODING, 'train': FinetuneProgress.TRAINING,
          'calibrate': FinetuneProgress.CALIBRATING}
STATES = {getattr(FinetuneProgress, name): name for name in ('IDLE', 'STARTING', 'PAUSED', 'FINISHED', 'FAILED', 'ENCODING', 'TRAINING',
                                                             'CALIBRATING')}


class FinetunerNode(Node):
    """Trains at once or on ~/start, and says how far it is. Raises ConfigError for bad or missing parameters.

    arguments: those of rclpy.node.Node, such as context, namespace or parameter_overrides.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__('finetuner', **arguments)
        self._groups = parameters.declare(self, parameters.GROUPS['finetuner'])
        self.options: FinetunerOptions = self._groups['']
        for name in ('map', 'bags', 'out'):
            if getattr(self.options, name) in ('', (), ('',)):  # the last is what an empty list of texts is in YAML files of ROS
                raise ConfigError(f'parameter {name}: required, as in -p map:=ROOM.dsacmap -p bags:="[DRIVE]" -p out:=BETTER.dsacmap')
        self._process: TrainingProcess | None = None
        self._state, self._message, self._newest = FinetuneProgress.IDLE, 'not started', Progress('read')
        self._paused = self._refused = False
        self._told_s = self._published_s = 0.0
        self._seek_until_s: float | None = None  # the localizer that is to load the map, and then its answer
        self._asked: Future | None = None
        self._publisher = self.create_publisher(FinetuneProgress, '~/progress',
                                                QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL))
        self._loader = self.create_client(LoadMap, f'{self.options.localizer}/load_map') if self.options.localizer else None
        self.create_service(Trigger, '~/start', self._on_start)
        self.create_service(SetBool, '~/pause', self._on_pause)
        self.create_service(Trigger, '~/stop', self._on_stop)
        DiagnosticsPublisher(self, lambda: {'training': self._finding()})
        self.create_timer(LOOK_S, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME))
        if self.options.autostart:
            self._start()
        else:
            self._publish()

    def end(self) -> bool:
        """Have the training write its checkpoint, and destroy the node."""
        if self._process is not None:
            self._process.close(LEAVE_S)
        self.destroy_node()
        return True

    def _start(self) -> None:
        self._process = TrainingProcess(command_line(self.options, self._groups['training'], self._groups['source']))
        self._newest, self._told_s, self._seek_until_s, self._asked = Progress('read'), time.monotonic(), None, None
        self._paused = self._refused = False
        self._become(FinetuneProgress.STARTING, f'training {self.options.map} on {", ".join(self.options.bags)}')

    def _look(self) -> None:
        process = self._process
        if process is not None:
            code = process.ended()  # before the newest progress, so that the last one is not missed
            if process.newest is not None and process.newest is not self._newest:
                self._newest, self._told_s = process.newest, time.monotonic()
            if code is not None:
                self._ended(process, code)
            elif not self._paused and STAGES[self._newest.stage] != self._state:
                self._become(STAGES[self._newest.stage], self._newest.stage)
            elif time.monotonic() - self._published_s > PUBLISH_S:
                self._publish()
        elif self._seek_until_s is not None:
            self._hand_over()

    def _ended(self, process: TrainingProcess, code: int) -> None:
        self._process = None
        last = process.said[-1].removeprefix('dsac-ros finetune: ') if process.said else f'the training process ended with code {code}'
        if code == 0:
            for line in process.said:
                self.get_logger().info(line)
            self._seek_until_s = time.monotonic() + HAND_OVER_S if self._loader is not None else None
            self._become(FinetuneProgress.FINISHED, f'{self.options.out} is written')
        elif code == INTERRUPTED:
            self._become(FinetuneProgress.IDLE, last)
        elif code < 0:
            self._become(FinetuneProgress.FAILED, f'the training process was killed by signal {-code}; ~/start goes on from its checkpoint')
        else:
            self._become(FinetuneProgress.FAILED, last)

    def _hand_over(self) -> None:
        if self._asked is None and self._loader.service_is_ready():
            self._seek_until_s = time.monotonic() + ANSWER_S
            self._asked = self._loader.call_async(LoadMap.Request(path=str(Path(self.options.out).absolute())))
            self._asked.add_done_callback(self._loaded)
        elif time.monotonic() > self._seek_until_s:
            service = self.resolve_service_name(self._loader.srv_name)
            if self._asked is None:
                what = f'no {service} was found within {HAND_OVER_S:.0f} s'
            else:
                what = f'{service} has not answered for {ANSWER_S:.0f} s'
                self._loader.remove_pending_request(self._asked)
            self._seek_until_s, self._asked, self._refused = None, None, True
            self._say(f'{self.options.out} is written; {what}')

    def _loaded(self, answer: Future) -> None:
        if answer is not self._asked:  # another training has begun since
            return
        self._seek_until_s, self._asked, result = None, None, answer.result()
        self._refused = not result.success
        self._say(f'{self.options.out} is written; {self.options.localizer} {"uses" if result.success else "refuses"} it: {result.message}')

    def _on_start(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._process is not None:
            return _answer(response, False, 'it runs already' + ('; ~/pause with false goes on' if self._paused else ''))
        self._start()
        return _answer(response, True, self._message)

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if self._process is None or self._state == FinetuneProgress.CALIBRATING:
            return _answer(response, False, f'nothing to pause: {STATES[self._state]}')
        self._process.tell('pause' if request.data else 'resume')
        self._paused, self._told_s = request.data, time.monotonic()
        if request.data:
            self._become(FinetuneProgress.PAUSED, f'paused while it was at: {self._newest.stage}')
        else:
            self._become(STAGES[self._newest.stage], 'goes on')
        return _answer(response, True, self._message)

    def _on_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._process is None or self._state == FinetuneProgress.CALIBRATING:
            return _answer(response, False, f'nothing to stop: {STATES[self._state]}')
        self._process.tell('finish')
        self._paused = False
        return _answer(response, True, 'the best state so far is calibrated and written' if self._newest.stage == 'train' else
                       'it ends; it has not trained yet')

    def _become(self, state: int, message: str) -> None:
        self._state = state
        self._say(message)

    def _say(self, message: str) -> None:
        self._message = message
        logger = self.get_logger()
        if self._state == FinetuneProgress.FAILED:  # a call each: rclpy wants the same severity at the same place
            logger.error(message)
        elif self._refused:
            logger.warning(message)
        else:
            logger.info(message)
        self._publish()

    def _publish(self) -> None:
        newest, message = self._newest, FinetuneProgress()
        message.header.stamp = self.get_clock().now().to_msg()
        message.state, message.message, message.map = self._state, self._message, self.options.out
        message.held_out_loss = newest.held_out
        message.held_out_position, message.held_out_rotation = newest.held_out_cm / 100, math.radians(newest.held_out_deg)
        for name in ('step', 'steps', 'seconds_left', 'loss', 'entropy_bits', 'best_loss', 'best_step'):
            setattr(message, name, getattr(newest, name))
        self._publisher.publish(message)
        self._published_s = time.monotonic()

    def _finding(self) -> Finding:
        newest, silent_s = self._newest, time.monotonic() - self._told_s
        values = {'state': STATES[self._state], 'step': newest.step, 'steps': newest.steps, 'loss': newest.loss, 'held_out_loss':
                  newest.held_out, 'best_loss': newest.best_loss, 'best_step': newest.best_step, 'seconds_left': newest.seconds_left,
                  'pid': None if self._process is None else self._process.pid}
        if self._state == FinetuneProgress.FAILED:
            return ERROR, self._message, values
        if self._refused:
            return WARN, self._message, values
        if self._state == FinetuneProgress.TRAINING and silent_s > SILENT_S:
            return WARN, f'no step for {silent_s:.0f} s', values
        return OK, f'{STATES[self._state]}: {self._message}', values


def _answer(response: Any, success: bool, message: str) -> Any:
    response.success, response.message = success, message
    return response


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM (0), or say in one line why it cannot start (1)."""
    return run('finetuner', FinetunerNode, lambda node: True, arguments)


if __name__ == '__main__':
    sys.exit(main())
