"""The end of a node's process while its main thread is at something that no signal interrupts."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

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


def test_a_signal_ends_a_process_that_is_busy_starting() -> None:
    process = subprocess.Popen([sys.executable, '-c', SLOW], stdout=subprocess.PIPE, text=True,
                               env=os.environ | {'PYTHONPATH': os.pathsep.join(path for path in sys.path if path)})
    try:
        assert process.stdout.readline() == 'started\n'
        begun_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(20.0) == 0 and time.monotonic() - begun_s < 10.0
    finally:
        process.kill()
