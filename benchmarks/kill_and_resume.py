"""Fine-tuning killed at random moments and resumed, beside one left alone: the weights have to be the same, bit for bit.

    python -m benchmarks.kill_and_resume kitchen.dsacmap $D/kitchen --split train --out killed --kills 20
"""
from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from dsac_ros.errors import DsacError
from dsac_ros.maps.bundle import load_map
from dsac_ros.training.state import checkpoint_of

ITERATIONS = 400
SETTINGS = ('batch=2', 'hypotheses=32', 'bits=3', 'augmented=0', 'max_frames=40', 'check_every=20', 'checkpoint_seconds=0.2')


def main(arguments: list[str] | None = None) -> int:
    """Prints how often it was killed and whether the weights are equal; 1 where they are not."""
    parser = argparse.ArgumentParser(prog='kill_and_resume', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('map', type=Path)
    parser.add_argument('source')
    parser.add_argument('--split')
    parser.add_argument('--out', type=Path, required=True, help='folder for both results')
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        kills, equal = compare(options)
    except DsacError as error:
        print(f'kill_and_resume: {error}', file=sys.stderr)
        return 2
    print(f'killed {kills} times and resumed: the weights are {"the same, bit for bit" if equal else "different"}')
    return 0 if equal else 1


def compare(options: argparse.Namespace) -> tuple[int, bool]:
    options.out.mkdir(parents=True, exist_ok=True)
    alone, killed = options.out / 'alone.dsacmap', options.out / 'killed.dsacmap'
    if finetuning(options, alone, False).wait():
        raise DsacError(f'{options.map}: the training that nobody disturbed failed; see above')
    kills, rng = 0, random.Random(options.seed)
    checkpoint = checkpoint_of(killed)
    while not killed.exists():
        process = finetuning(options, killed, checkpoint.exists())
        # Anywhere: while it starts, encodes, trains, writes a checkpoint or the map. Enough time for some progress now and then.
        moment = time.monotonic() + rng.uniform(1, 40)
        while process.poll() is None and (time.monotonic() < moment or kills == options.kills):
            time.sleep(0.02)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        elif process.returncode:
            raise DsacError(f'{killed}: a resumed training failed; see above')
        process.wait()
    first, second = (load_map(path).expert.state_dict() for path in (alone, killed))
    return kills, all(torch.equal(value, second[name]) for name, value in first.items())


def finetuning(options: argparse.Namespace, out: Path, resume: bool) -> subprocess.Popen:
    command = [sys.executable, '-m', 'dsac_ros.cli', 'finetune', str(options.map), options.source, '--out', str(out), '--iterations',
               str(ITERATIONS), '--device', 'cpu']
    command += [part for setting in SETTINGS for part in ('--set', setting)]
    command += ['--split', options.split] if options.split else []
    return subprocess.Popen(command + (['--resume'] if resume else []), stdout=subprocess.DEVNULL)


if __name__ == '__main__':
    sys.exit(main())
