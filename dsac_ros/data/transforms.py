"""Stamped transforms in, `a_from_b` at any stamp out: quaternions at the edge, trajectories and the TF tree of a recording or a robot."""
from __future__ import annotations

from bisect import bisect_left

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from dsac_ros.errors import DataError

RESTART_NS = 1_000_000_000  # a live sample this far before the newest one says that time went back, as when a bag loops


def matrix_from(translation: np.ndarray, quat_xyzw: np.ndarray) -> np.ndarray:
    """(3,) metres and (4,) quaternion, normalised here -> (4, 4) float64. Raises DataError for a zero or non-finite one."""
    translation, quat_xyzw = np.asarray(translation, np.float64), np.asarray(quat_xyzw, np.float64)
    if not (np.isfinite(translation).all() and np.isfinite(quat_xyzw).all() and np.linalg.norm(quat_xyzw) > 1e-6):
        raise DataError(f'a pose is not one: translation {translation.tolist()}, quaternion xyzw {quat_xyzw.tolist()}; expected finite '
                        'numbers and a '
                        'quaternion of length 1')
    a_from_b = np.eye(4)
    a_from_b[:3, :3] = Rotation.from_quat(quat_xyzw).as_matrix()
    a_from_b[:3, 3] = translation
    return a_from_b


def quat_xyzw_of(a_from_b: np.ndarray) -> np.ndarray:
    """(4, 4) -> (4,) quaternion x y z w with w >= 0."""
    return Rotation.from_matrix(a_from_b[:3, :3]).as_quat(canonical=True)


def rigid_inverse(a_from_b: np.ndarray) -> np.ndarray:
    """(4, 4) -> (4, 4), for a rotation and a translation."""
    b_from_a = np.eye(4)
    b_from_a[:3, :3] = a_from_b[:3, :3].T
    b_from_a[:3, 3] = -a_from_b[:3, :3].T @ a_from_b[:3, 3]
    return b_from_a


class Trajectory:
    """One moving transform: samples in any order, then `at(stamp)`, linear in position and slerp in rotation between neighbours.

    keep_ns: for a live stream, how much of it is kept; it starts anew when time goes back. None keeps all of a recording.
    """

    def __init__(self, max_gap_ns: int = 500_000_000, keep_ns: int | None = None) -> None:
        self.max_gap_ns, self.keep_ns = max_gap_ns, keep_ns
        self._samples: dict[int, np.ndarray] = {}
        self._stamps: list[int] | None = []  # sorted; None: samples have come since
        self._newest_ns = 0

    def add(self, stamp_ns: int, a_from_b: np.ndarray) -> None:
        """A later sample of the same stamp replaces the earlier one, as in tf2."""
        if self.keep_ns is not None:
            if stamp_ns < self._newest_ns - RESTART_NS:
                self._samples.clear()
                self._newest_ns = 0
            while self._samples and (oldest_ns := next(iter(self._samples))) < self._newest_ns - self.keep_ns:
                del self._samples[oldest_ns]
        self._newest_ns = max(stamp_ns, self._newest_ns)
        self._samples[stamp_ns] = a_from_b
        self._stamps = None

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def stamps(self) -> list[int]:
        """Of all samples, ascending."""
        if self._stamps is None:
            self._stamps = sorted(self._samples)
        return self._stamps

    def at(self, stamp_ns: int) -> np.ndarray | None:
        """(4, 4), or None outside the samples or inside a gap longer than max_gap_ns: nothing is extrapolated."""
        if stamp_ns in self._samples:
            return self._samples[stamp_ns]
        stamps = self.stamps
        after = bisect_left(stamps, stamp_ns)
        if after in (0, len(stamps)):
            return None
        t0, t1 = stamps[after - 1], stamps[after]
        if t1 - t0 > self.max_gap_ns:
            return None
        share = (stamp_ns - t0) / (t1 - t0)
        m0, m1 = self._samples[t0], self._samples[t1]
        a_from_b = np.eye(4)
        a_from_b[:3, :3] = Slerp([0, 1], Rotation.from_matrix([m0[:3, :3], m1[:3, :3]]))(share).as_matrix()
        a_from_b[:3, 3] = (1 - share) * m0[:3, 3] + share * m1[:3, 3]
        return a_from_b


class TransformTree:
    """The TF tree of a recording, or with keep_ns of a robot: each frame has one parent, the edge is static or a Trajectory."""

    def __init__(self, max_gap_ns: int = 500_000_000, keep_ns: int | None = None) -> None:
        self.max_gap_ns, self.keep_ns = max_gap_ns, keep_ns
        self._parents: dict[str, str] = {}
        self._edges: dict[str, np.ndarray | Trajectory] = {}

    def add(self, parent: str, child: str, stamp_ns: int, parent_from_child: np.ndarray, static: bool) -> None:
        """One TransformStamped. A frame that changes its parent starts anew under the new one."""
        parent, child = parent.lstrip('/'), child.lstrip('/')
        if self._parents.get(child, parent) != parent:
            self._edges.pop(child, None)
        self._parents[child] = parent
        if static:
            self._edges[child] = parent_from_child
            return
        edge = self._edges.get(child)
        if not isinstance(edge, Trajectory):
            edge = self._edges[child] = Trajectory(self.max_gap_ns, self.keep_ns)
        edge.add(stamp_ns, parent_from_child)

    @property
    def frames(self) -> list[str]:
        """All frame names, sorted."""
        return sorted(set(self._parents) | set(self._parents.values()))

    def chain(self, frame: str) -> list[str]:
        """The frame and its ancestors up to the root; just the frame itself where the tree does not know it."""
        names = [frame.lstrip('/')]
        while (parent := self._parents.get(names[-1])) is not None:
            if parent in names:
                raise DataError(f'/tf: the frames {names[names.index(parent):]} are each other\'s parents; a tree has no loops')
            names.append(parent)
        return names

    def moves(self, frame: str, ancestor: str) -> bool:
        """Whether an edge between the frame and its ancestor is dynamic."""
        names = self.chain(frame)
        return any(isinstance(self._edges[name], Trajectory) for name in names[:names.index(ancestor)])

    def lookup(self, target: str, source: str, stamp_ns: int) -> np.ndarray | None:
        """target_from_source (4, 4) at the stamp; None where the frames do not hang together or an edge has no sample there."""
        up_source, up_target = self.chain(source), self.chain(target)
        common = next((name for name in up_source if name in up_target), None)
        if common is None:
            return None
        common_from_source = self._up(up_source[:up_source.index(common)], stamp_ns)
        common_from_target = self._up(up_target[:up_target.index(common)], stamp_ns)
        if common_from_source is None or common_from_target is None:
            return None
        return rigid_inverse(common_from_target) @ common_from_source

    def why_not(self, target: str, source: str, stamp_ns: int) -> str:
        """For people: what a lookup that found nothing lacks."""
        up_source, up_target = self.chain(source), self.chain(target)
        common = next((name for name in up_source if name in up_target), None)
        if common is None:
            unknown = [name for name in (source.lstrip('/'), target.lstrip('/')) if name not in self.frames]
            return f'no transform names {" and ".join(unknown)}' if unknown else 'the two are not connected'
        for name in (*up_source[:up_source.index(common)], *up_target[:up_target.index(common)]):
            edge = self._edges[name]
            if isinstance(edge, Trajectory) and edge.at(stamp_ns) is None:
                first_ns, last_ns = edge.stamps[0], edge.stamps[-1]
                where = (f'begins {(first_ns - stamp_ns) / 1e9:.3f} s after' if stamp_ns < first_ns else
                         f'ends {(stamp_ns - last_ns) / 1e9:.3f} s before' if stamp_ns > last_ns else
                         f'has a gap of more than {edge.max_gap_ns / 1e9} s around')
                return f'{self._parents[name]} <- {name} {where} the image'
        return 'nothing'

    def _up(self, names: list[str], stamp_ns: int) -> np.ndarray | None:
        """The product of the edges above the named frames."""
        total = np.eye(4)
        for name in names:
            edge = self._edges[name]
            parent_from_child = edge.at(stamp_ns) if isinstance(edge, Trajectory) else edge
            if parent_from_child is None:
                return None
            total = parent_from_child @ total
        return total
