"""The end of a node's process while its main thread is at something that no signal interrupts, or that fails for it."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import pytest

# As an import does, sleep goes on after rclpy's handler of the signal.
SLOW = '''
import sys, time
from rclpy.node import Node
from dsac_ros.ros.running import run

class Slow(Node):
    def end(self):
        return True

def start(node):
    print('started', flush=True)
    time.sleep(60)
    return True

sys.exit(run('slow', lambda: Slow('slow'), start, []))
'''
HALF_MADE = '''
import sys, time
from rclpy.node import Node
from std_msgs.msg import Empty
from dsac_ros.ros.running import run

class HalfMade(Node):
    def __init__(self):
        super().__init__('half_made')
        print('started', flush=True)
        while self.context.ok():
            time.sleep(0.01)
        self.create_publisher(Empty, 'nothing', 1)

sys.exit(run('half_made', HalfMade, lambda node: True, []))
'''

# The first argument, if there is one: a signal that comes before rclpy handles any.
ENDING = '''
import signal, sys
import rclpy
from rclpy.node import Node
from dsac_ros.ros.running import run

class Ending(Node):
    def end(self):
        print('ended', flush=True)
        return True

def start(node):
    print('started', flush=True)
    return True

rest = [int(number) for number in sys.argv[1:]]
if rest:
    usual = rclpy.init
    def init(**arguments):
        print('started', flush=True)
        signal.raise_signal(rest[0])
        usual(**arguments)
    rclpy.init = init
sys.exit(run('ending', lambda: Ending('ending'), start, []))
'''


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=os.environ | {'PYTHONPATH': os.pathsep.join(path for path in sys.path if path)})
    try:
        assert process.stdout.readline() == 'started\n'
        yield process
    finally:
        process.kill()


def test_a_signal_ends_a_process_that_is_busy_starting() -> None:
    with started('-c', SLOW) as process:
        begun_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(20.0) == 0 and time.monotonic() - begun_s < 10.0


def test_a_signal_while_the_node_is_made_is_no_error() -> None:
    """Its publishers cannot be made any more then: exit code 0, and no traceback."""
    with started('-c', HALF_MADE) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20.0) == 0 and 'Traceback' not in process.stderr.read()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_rclpy_handles_any_ends_with_zero(number: signal.Signals) -> None:
    with started('-c', ENDING, str(int(number))) as process:
        assert process.wait(20.0) == 0 and process.stderr.read() == process.stdout.read() == ''


@pytest.mark.parametrize('numbers', list(product([signal.SIGINT, signal.SIGTERM], repeat=2)))
def test_a_second_signal_does_not_disturb_the_end(numbers: tuple[signal.Signals, signal.Signals]) -> None:
    """Soon after the first, wherever that has got to by then."""
    for wait_s in (1e-4, 3e-4, 5e-4, 1e-3):
        with started('-c', ENDING) as process:
            process.send_signal(numbers[0])
            time.sleep(wait_s)
            process.send_signal(numbers[1])
            assert process.wait(20.0) == 0, process.stderr.read()
            assert process.stderr.read() == '' and process.stdout.read() == 'ended\n'


def test_the_context_of_somebody_else_stays() -> None:
    begin, end = "rclpy.init(); print('started', flush=True); code = (", '; sys.exit(10 * code + rclpy.ok())'
    with started('-c', ENDING.replace('sys.exit(', begin).rstrip() + end) as process:
        assert process.wait(20.0) == 11 and process.stderr.read().startswith('ending: ')
