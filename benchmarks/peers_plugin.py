"""Our estimators for `python ../shared/peers_pnp.py run --plugin benchmarks/peers_plugin.py:ESTIMATORS`."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Callable

import numpy as np

# The script loads this file by its path, from wherever it is called.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.ours import ours  # noqa: E402
from benchmarks.peers import Estimator, transform  # noqa: E402
from benchmarks.problems import Problem  # noqa: E402
from dsac_ros.records import Camera  # noqa: E402

Pose = tuple[np.ndarray, np.ndarray]


def converted(theirs: Any) -> Problem:
    """A problem of that script as one of ours; sampling weights and depth are there for those that may look at them."""
    k, (width, height) = theirs.K, theirs.image_wh
    camera = Camera(width, height, k[0, 0], k[1, 1], k[0, 2], k[1, 2])
    count = len(theirs.pix)
    return Problem(camera, theirs.pix, theirs.xyz, theirs.cam[:, 2], np.zeros(count), theirs.w, np.ones(count),
                   transform(theirs.R, theirs.t))


def plugged(estimator: Estimator) -> Callable[[Any], Pose]:
    """A callable as that script wants it: problem -> (rotation, translation), with prepare, modality and note as attributes."""
    def solve(theirs: Any) -> Pose:
        camera_from_map = estimator.solve(theirs.cache[estimator.name])
        return camera_from_map[:3, :3], camera_from_map[:3, 3]

    def prepare(theirs: Any) -> None:
        theirs.cache[estimator.name] = estimator.prepare(converted(theirs))

    solve.prepare, solve.modality, solve.note = prepare, estimator.modality, 'dsac_ros, noise unknown'
    return solve


ESTIMATORS = {estimator.name: plugged(estimator) for estimator in ours((64, 256, 1024))}
