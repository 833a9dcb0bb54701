"""The command `dsac-ros`: one sub-command per module of dsac_ros.commands."""
from __future__ import annotations

import argparse
import importlib
import os
import sys

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
    parser = argparse.ArgumentParser(prog='dsac-ros', description=f'Learned camera localisation: {", ".join(COMMANDS)}.')
    subparsers = parser.add_subparsers(dest='command', required=True)
    for name in COMMANDS:
        module = importlib.import_module(f'dsac_ros.commands.{name}')
        sub = subparsers.add_parser(name, help=module.HELP, description=module.__doc__, formatter_class=Formatter)
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except DsacError as error:
        print(f'dsac-ros {options.command}: {error}', file=sys.stderr)
        return INTERRUPTED if isinstance(error, Interrupted) else 1
    except KeyboardInterrupt:
        print(f'dsac-ros {options.command}: interrupted', file=sys.stderr)
        return INTERRUPTED


if __name__ == '__main__':
    sys.exit(main())
