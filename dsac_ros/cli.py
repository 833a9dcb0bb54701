"""The command `dsac-ros`: one sub-command per module of dsac_ros.commands."""
from __future__ import annotations

import argparse
import importlib
import sys

from dsac_ros.errors import DsacError

COMMANDS = ('map', 'maps', 'finetune', 'evaluate', 'convert', 'synth')


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, and turn an error that the user can cure into one line and exit code 1."""
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
        return 1
    except KeyboardInterrupt:
        print(f'dsac-ros {options.command}: interrupted', file=sys.stderr)
        return 130


if __name__ == '__main__':
    sys.exit(main())
