"""The end of a node's process while its main thread is at something that no signal interrupts, or that fails for it."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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

IMPORTING = '''
import sys
from rclpy.node import Node
from dsac_ros.ros.running import run

class Importing(Node):
    def end(self):
        return True

def start(node):
    print('started', flush=True)
    exec('import signal; signal.raise_signal(signal.SIGINT); [None for _ in iter(int, 1)]')
    return True

sys.exit(run('importing', lambda: Importing('importing'), start, []))
'''

# The signal's KeyboardInterrupt, and what rclpy's thread does with the signal, late.
OVERTAKING = '''
import sys, threading
from rclpy.node import Node
from rclpy.signals import SignalHandlerGuardCondition
from dsac_ros.ros.running import run

class Overtaking(Node):
    def __init__(self):
        super().__init__('overtaking')
        self.create_timer(0.01, self.interrupt)

    def interrupt(self):
        threading.Timer(0.3, self.end_context).start()
        raise KeyboardInterrupt

    def end_context(self):
        print('context', flush=True)
        with self.context.handle:
            self.context.handle.shutdown()

    def end(self):
        print('node', flush=True)
        return True

class Told(SignalHandlerGuardCondition):
    def destroy(self):
        print('executor', flush=True)
        super().destroy()

import rclpy.executors
rclpy.executors.SignalHandlerGuardCondition = Told
print('started', flush=True)
sys.exit(run('overtaking', Overtaking, lambda node: True, []))
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
    """Its publishers cannot be made any more then: exit code 0, and no traceback. SIGINT may come with a KeyboardInterrupt, or too late."""
    with started('-c', HALF_MADE) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20.0) == 0 and 'Traceback' not in process.stderr.read()


def test_a_signal_within_an_exec_of_text_ends_with_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As dataclasses have while torch is imported: an interpreter with -m kills itself with SIGINT at its exit, though it was caught."""
    (tmp_path / 'importing.py').write_text(IMPORTING)
    monkeypatch.syspath_prepend(tmp_path)
    with started('-m', 'importing') as process:
        assert process.wait(20.0) == 0 and process.stderr.read() == ''


def test_nothing_goes_before_the_context_has_ended() -> None:
    """rclpy's thread still reads the executor when KeyboardInterrupt comes: one that is gone makes it crash, one time in hundreds."""
    with started('-c', OVERTAKING) as process:
        assert process.wait(20.0) == 0 and process.stderr.read() == ''
        assert list(dict.fromkeys(process.stdout.read().split())) == ['context', 'executor', 'node']
