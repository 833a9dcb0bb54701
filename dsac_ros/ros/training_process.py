"""The training of the finetuner node: `dsac-ros finetune --piped` in a process of its own, so that its niceness, threads and memory are."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import deque
from dataclasses import fields
from pathlib import Path

from dsac_ros.commands.finetune import DIRECT
from dsac_ros.config import FinetunerOptions, FinetuningOptions, SourceOptions
from dsac_ros.training.watching import Progress

LAST_WORDS = 20
READ_S = 1.0  # for what it said last; something that it started may hold the pipe open for ever


def command_line(options: FinetunerOptions, training: FinetuningOptions, source: SourceOptions) -> list[str]:
    """What the node's parameters are on the command line."""
    command = [sys.executable, '-m', 'dsac_ros.cli', 'finetune', options.map, *options.bags, '--out', str(Path(options.out).absolute()),
               '--piped', '--device', options.device, '--threads', str(options.threads), '--nice', str(options.nice)]
    command += ['--overwrite'] if options.overwrite else []
    for option in fields(FinetuningOptions):
        value = getattr(training, option.name)
        command += [f'--{option.name}', str(value)] if option.name in DIRECT else ['--set', f'{option.name}={json.dumps(value)}']
    for option in fields(SourceOptions):
        value = getattr(source, option.name)
        command += [f'--{option.name.replace("_", "-")}', str(value)] if value != '' else []
    return command


class TrainingProcess:
    """Runs from the start until it has ended by itself, is told so, or this process is gone, which its pipe tells it."""

    def __init__(self, command: list[str]) -> None:
        # Where this process found dsac_ros, there the other finds it too.
        environment = os.environ | {'PYTHONPATH': os.pathsep.join(os.path.abspath(path) for path in sys.path if path)}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                         errors='replace', env=environment, start_new_session=True)
        self.newest: Progress | None = None
        self.said: deque[str] = deque(maxlen=LAST_WORDS)  # lines that are no progress
        self._reader = threading.Thread(target=self._read, name='training', daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, word: str) -> None:
        """pause, resume, finish or leave; nothing happens where it has ended."""
        try:
            self._process.stdin.write(word + '\n')
            self._process.stdin.flush()
        except BrokenPipeError:
            pass

    def ended(self) -> int | None:
        """The exit code, once it has ended and what it said has been read; None while it runs."""
        code = self._process.poll()
        if code is not None:
            self._reader.join(READ_S)
        return code

    def close(self, timeout_s: float) -> None:
        """Have it write a checkpoint and end; where that takes longer, the last one has to do: it is whole at any moment."""
        self.tell('leave')
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        for line in self._process.stdout:
            try:
                self.newest = Progress(**json.loads(line))
            # Libraries and the interpreter print what they like.
            except (ValueError, TypeError, KeyError):
                if line.strip():
                    self.said.append(line.strip())
