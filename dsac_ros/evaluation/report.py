"""The results folder: written beside its place and renamed, so that it is whole or absent. Files: docs/evaluation.md."""
from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np
import torch

import dsac_ros
from dsac_ros.errors import DataError
from dsac_ros.evaluation import page, tables
from dsac_ros.evaluation.metrics import summarise_latency, summarise_poses
from dsac_ros.evaluation.records import FrameResult
from dsac_ros.replacing import check_replaceable, move_into_place

FILES = ('est.tum', 'ref.tum', 'per_frame.csv', 'timing.csv', 'metrics.json', 'summary.json', 'report.html')
# What two offline runs on one machine write byte for byte alike; the other files hold clock readings.
REPRODUCIBLE = ('est.tum', 'ref.tum', 'per_frame.csv', 'metrics.json')


def write_results(folder: Path, results: Sequence[FrameResult], run: Mapping[str, Any], overwrite: bool = False) -> dict[str, Any]:
    """Write all FILES and return what summary.json holds. `run`: see describe_run. Raises DataError as check_place does, and where there is
    no room; then nothing is left behind and older results stay."""
    check_place(folder, overwrite)
    poses = summarise_poses(results)
    summary = {**poses, **summarise_latency(results), 'run': dict(run)}
    part = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
    try:
        part.chmod(0o755)  # mkdtemp's 0700 is for secrets
        tables.write_tum(part / 'est.tum', [(r.stamp_ns, r.map_from_camera) for r in results if r.answered])
        tables.write_tum(part / 'ref.tum', [(r.stamp_ns, r.reference) for r in results if r.reference is not None])
        tables.write_per_frame(part / 'per_frame.csv', results)
        tables.write_timing(part / 'timing.csv', results)
        tables.write_json(part / 'metrics.json', poses)
        tables.write_json(part / 'summary.json', summary)
        (part / 'report.html').write_text(page.render(results, summary), encoding='utf-8')
        move_into_place(part, folder)
    except OSError as error:
        raise DataError(f'{folder}: cannot be written: {error.strerror}') from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return summary


def check_place(folder: Path, overwrite: bool) -> None:
    """Raise DataError unless results can be written to `folder`, and may: it is absent, empty, or older results with `overwrite`."""
    try:
        check_replaceable(folder)
        _check_contents(folder, overwrite)
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder.parent).close()
    except OSError as error:
        raise DataError(f'{folder}: cannot be written: {error.strerror}; choose another --out') from error


def describe_run(map_path: Path, source: str, modality: str, device: str, options: Mapping[str, Any],
                 warnings: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The `run` part of summary.json: what was run on what, where, with which versions. device: 'cpu', 'cuda' or 'cuda:N'."""
    manifest = Path(map_path) / 'manifest.yaml'
    return {
        'map': Path(map_path).name, 'map_path': str(Path(map_path).resolve()),
        'map_manifest_sha256': hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else None,
        'source': str(source), 'split': options.get('split') or '', 'modality': modality, 'live': bool(options.get('live', False)),
        'rate': options.get('rate') if options.get('live') else None, 'created': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        'device': device_name(device), 'revision': git_revision(), 'options': dict(options), 'left_out': dict(warnings or {}),
        'versions': {'dsac_ros': dsac_ros.__version__, 'python': platform.python_version(), 'torch': torch.__version__,
                     'numpy': np.__version__}}


def device_name(device: str) -> str:
    """The name of the GPU, or of the processor with the number of cores that torch uses."""
    if device.startswith('cuda'):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    model = next((line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')), platform.machine())
    return f'{model}, {torch.get_num_threads()} threads'


def git_revision() -> str | None:
    """Commit of the sources that run, '+changes' when they differ from it; None for an installed package."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(['git', '-C', str(here), *arguments], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    try:
        # A venv may lie inside of somebody else's repository: only a repository that tracks this very file counts.
        git('ls-files', '--error-unmatch', Path(__file__).name)
        changes = git('status', '--porcelain', '--untracked-files=no', '--', str(here.parent))
        return git('rev-parse', 'HEAD') + ('+changes' if changes else '')
    except (OSError, subprocess.SubprocessError):
        return None


def _check_contents(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f'{folder}: the results go into a folder, but this is a file; choose another --out')
    if not any(folder.iterdir()):
        return
    strangers = sorted(p.name for p in folder.iterdir() if p.name not in FILES)
    if strangers or not (folder / 'summary.json').is_file():
        found = ', '.join(strangers[:3]) or 'no summary.json'
        raise DataError(f'{folder}: is not a results folder (it holds {found}) and is left alone; choose another --out')
    if not overwrite:
        raise DataError(f'{folder}: holds older results; pass --overwrite to replace them, or choose another --out')
