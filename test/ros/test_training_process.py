"""What a training process says, and whether it has ended: other code than ours prints into the same pipe."""
from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict

import pytest

from dsac_ros import cli
from dsac_ros.config import FinetunerOptions, FinetuningOptions, SourceOptions
from dsac_ros.ros.training_process import TrainingProcess, command_line
from dsac_ros.training.watching import Progress

WAIT_S = 30.0
SAYS = '''
import sys
for line in ({lines}):
    sys.stdout.buffer.write(line + b'\\n')
sys.stdout.flush()
sys.stdin.readline()
sys.exit(3)
'''


def saying(*lines: bytes) -> TrainingProcess:
    """A process that prints these lines, waits to be told something, and ends with 3."""
    return TrainingProcess([sys.executable, '-c', SAYS.format(lines=', '.join(map(repr, lines)) + ',')])


def exit_code(process: TrainingProcess) -> int | None:
    until = time.monotonic() + WAIT_S
    while (code := process.ended()) is None and time.monotonic() < until:
        time.sleep(0.01)
    return code


@pytest.mark.parametrize('noise', [b'{0: a dictionary}', b'{"stage": "train", "speed": 3}', b'[1, 2]', b'7', b'null', b'caf\xe9'])
def test_a_line_that_is_no_progress_is_kept_and_ends_nothing(noise: bytes) -> None:
    told = Progress('train', step=4)
    process = saying(noise, json.dumps(asdict(told)).encode())
    until = time.monotonic() + WAIT_S
    while process.newest is None and time.monotonic() < until:
        time.sleep(0.01)
    assert process.newest.step == told.step and list(process.said) == [noise.decode(errors='replace')]
    begun_s = time.monotonic()
    assert process.ended() is None and time.monotonic() - begun_s < 1.0
    process.tell('leave')
    assert exit_code(process) == 3


def test_it_has_ended_though_something_that_it_started_holds_its_pipe() -> None:
    process = TrainingProcess([sys.executable, '-c', 'import subprocess; print(subprocess.Popen(["sleep", "100"]).pid)'])
    try:
        assert exit_code(process) == 0 and len(process.said) == 1
    finally:
        os.kill(int(process.said[0]), signal.SIGTERM)


@pytest.mark.parametrize('source', [SourceOptions(), SourceOptions('val', pose_topic='/odom', slop=0.0)])
def test_parameters_of_the_source_reach_the_command_line(source: SourceOptions) -> None:
    command = command_line(FinetunerOptions(map='a', bags=('b',), out='c'), FinetuningOptions(), source)
    options = vars(cli.parse(command[command.index('finetune'):]))
    assert SourceOptions(**{name: options[name] or '' if name != 'slop' else options[name] for name in vars(source)}) == source
