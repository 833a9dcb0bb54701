"""The life of a node's process: arguments, spinning, signals, exit code. Alike for every node."""
from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Protocol, TypeVar

import rclpy
from rclpy.context import Context
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import uninstall_signal_handlers

from dsac_ros.errors import ConfigError, DsacError
from dsac_ros.ros.complaints import Complaints

WAKE_S = 0.5
PATIENCE_S = 1.0  # with what the main thread is at when a signal has come


class Ending(Protocol):
    """A node of the default context that can be ended: False where something of it still runs."""

    def end(self) -> bool: ...


N = TypeVar('N', bound=Ending)


def run(name: str, make: Callable[[], N], start: Callable[[N], bool], arguments: list[str] | None = None) -> int:
    """Make a node, start it and run until SIGINT or SIGTERM (0), or say in one line why it cannot (1).

    Both signals end the context, by rclpy's handlers, and do nothing else from here on: a KeyboardInterrupt would come anywhere, also while
    the node is being ended.
    """
    node, context, executor, code, leaving = None, None, None, 0, threading.Event()
    early: list[int] = []  # before rclpy had its handlers
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: early.append(number))
    try:
        context = _init(arguments)
        threading.Thread(target=_hurry, args=(context, leaving), name='hurry', daemon=True).start()
        if early:
            return 0
        executor = SingleThreadedExecutor(context=context)
        node = make()
        if start(node):
            spin(node, executor)
        else:
            code = 1
    except (DsacError, ParameterException) as error:
        print(f'{name}: {error}', file=sys.stderr)
        code = 1
    except Exception:
        # A signal ends the context under whatever is at work, which then fails in its own way.
        if context is None or context.ok():
            raise
    finally:
        leaving.set()
        if context is not None:
            # It waits for the thread of rclpy that handles signals, which reads the executor from a list that no lock guards.
            uninstall_signal_handlers()
        if executor is not None:
            executor.shutdown()
        ended = node is None or node.end()
        if context is not None:
            context.try_shutdown()
    if not ended:
        # A thread that is still in torch when the interpreter goes makes the process abort (exit code 134).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _hurry(context: Context, leaving: threading.Event) -> None:
    """End the process where the main thread does not come to leave soon after its context has ended.

    Configuring is importing torch and reading a map; on a machine that has to read these from disk it takes seconds, cannot be
    interrupted, and leaves nothing that would be lost.
    """
    while not leaving.wait(WAKE_S / 2):
        if not context.ok():
            if not leaving.wait(PATIENCE_S):
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
            return


def _init(arguments: list[str] | None) -> Context:
    try:
        rclpy.init(args=arguments)
    except RuntimeError as error:  # rcl's own error, for arguments or parameter files that it cannot read
        raise ConfigError(str(error)) from error
    return rclpy.get_default_context()


def spin(node: Node, executor: SingleThreadedExecutor) -> None:
    """Run the node's callbacks until its context ends.

    rclpy's signal handler wakes the executor before a thread of its own ends the context. An executor that was quick to wait again would
    then sleep until the next message, so this one wakes by itself. What a callback raises is said and ends nothing.
    """
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
