"""The command `dsac-ros`: one sub-command per module of dsac_ros.commands."""
from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from dsac_ros.errors import DsacError, Interrupted

INTERRUPTED = 130  # exit code, as of a shell after Ctrl-C
COMMANDS = ('map', 'maps', 'finetune', 'evaluate', 'view', 'convert', 'synth')
TRAINING = ('map', 'maps', 'finetune')
# How often a thread of OpenMP looks for work before it sleeps. By default it does so for milliseconds, and beside other work on the machine
# threads that wait for each other then take nearly all of the time (docs/mapping.md, "Beside other work").
SPINS = '3000'


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, and turn an error that the user can cure into one line and exit code 1, an end that was asked for into 130."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in TRAINING:
        os.environ.setdefault('GOMP_SPINCOUNT', SPINS)  # before torch is imported, which reads it once
    called = 'dsac-ros'
    try:
        with sigterm_as_ctrl_c():
            options = parse(arguments)
            called = f'dsac-ros {options.command}'
            return options.run(options)
    except DsacError as error:
        print(f'{called}: {error}', file=sys.stderr)
        return INTERRUPTED if isinstance(error, Interrupted) else 1
    except KeyboardInterrupt:
        print(f'{called}: interrupted', file=sys.stderr)
        return INTERRUPTED


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of the sub-command, and as `run` what runs it. Imports all of them, which takes seconds."""
    parser = argparse.ArgumentParser(prog='dsac-ros', description=f'Learned camera localisation: {", ".join(COMMANDS)}.')
    subparsers = parser.add_subparsers(dest='command', required=True)
    for name in COMMANDS:
        module = importlib.import_module(f'dsac_ros.commands.{name}')
        sub = subparsers.add_parser(name, help=module.HELP, description=module.__doc__, formatter_class=Formatter)
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser.parse_args(arguments)


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Within, SIGTERM ends the work as Ctrl-C does, so that scratch folders and the processes that it started do not stay behind.

    Where somebody handles or ignores SIGTERM already, and in threads, where signals do not come, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        on_ctrl_c = signal.getsignal(signal.SIGINT)
        heard = callable(on_ctrl_c)  # else it is ignored, as in the background of a script
        for worker in multiprocessing.active_children():  # Ctrl-C in a terminal reaches these by itself
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGINT if heard else signal.SIGTERM)
        if not heard:
            raise KeyboardInterrupt
        on_ctrl_c(number, frame)

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


if __name__ == '__main__':
    sys.exit(main())
