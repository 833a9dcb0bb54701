"""What the node is at, once a second on /diagnostics: docs/diagnostics.md has the rules of the levels, which are all here."""
from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dsac_ros.msg import LocalizationStatus
from dsac_ros.ros.complaints import Complaints
from dsac_ros.ros.diagnostics_publisher import ERROR, OK, WARN, DiagnosticsPublisher, Finding
from dsac_ros.ros.inputs import Inputs
from dsac_ros.ros.intake import Traffic
from dsac_ros.ros.robot import Robot
from dsac_ros.ros.worker import Worker
from dsac_ros.tracking.state import State

if TYPE_CHECKING:
    from dsac_ros.ros.localizer_node import LocalizerNode

SILENT_S = 2.0  # without a message: an input has stopped
LOST_S = 5.0  # without a pose: LOST is an error
STUCK_S = 5.0  # at one frame: it hangs
PAIRED_SHARE = 0.9  # of the last images, below which pairing is warned of
DROPPED_SHARE = 0.5  # of the images since the oldest status kept, above which dropping is


class Diagnostics:
    """The findings of a localizer, published as long as the node lives."""

    def __init__(self, node: LocalizerNode) -> None:
        self._node = node
        self._complaints = Complaints(node.get_logger().warning, period_s=10.0)
        DiagnosticsPublisher(node, self.findings)

    def findings(self) -> dict[str, Finding]:
        """Part -> what is found of it."""
        worker, inputs = self._node.worker, self._node.inputs
        if worker is None or inputs is None:
            said = self._node.outlets.newest
            return {'localization': (ERROR if said.startswith('cannot') else OK, said, {})}
        statuses, traffic = worker.recent(), self._node.intake.traffic()
        found = {'localization': localization(worker, statuses)}
        for stream in traffic.rates_hz:
            found[f'input {stream}'] = an_input(stream, inputs, traffic)
            level, text, _ = found[f'input {stream}']
            if level != OK:
                self._complaints.say(f'input {stream}', text)
        if 'depth' in traffic.rates_hz:
            found['pairing'] = pairing(traffic, self._node.options.sync_slop)
        if self._node.robot is not None:
            found['transforms'] = transforms(self._node.robot)
        return found | {'timing': timing(statuses)}


def localization(worker: Worker, statuses: Sequence[LocalizationStatus]) -> Finding:
    """State, reasons and counters of the newest frame."""
    ago_s = worker.seconds_since_pose()
    values: dict[str, Any] = {'map_frame': worker.map_frame, 'seconds_since_pose': '' if ago_s is None else ago_s}
    if not worker.is_alive():
        return ERROR, 'the thread that localises has ended; see the log', values
    if (at_work_s := worker.seconds_at_work()) > STUCK_S:
        return ERROR, f'the thread that localises has been at one frame for {at_work_s:.0f} s', values
    if not statuses:
        return WARN, 'no frame yet', values
    newest = statuses[-1]
    values |= {'state': State(newest.state).name, 'reasons': '; '.join(newest.reasons), 'expert': newest.expert,
               'modality': newest.modality, 'tracked': newest.tracked, 'landmarks': newest.landmarks, 'inlier_ratio': newest.inlier_ratio}
    values |= {name: getattr(newest, name) for name in newest.get_fields_and_field_types() if name.startswith('frames_')}
    values |= {f'refused.{cause}': count for cause, count in zip(newest.rejected_causes, newest.rejected_counts)}
    if not worker.enabled:
        return OK, 'disabled', values
    if newest.state == State.TRACKING:
        return OK, 'tracking', values
    long_ago = newest.state == State.LOST and ago_s is not None and ago_s > LOST_S
    return ERROR if long_ago else WARN, f'{State(newest.state).name}: {"; ".join(newest.reasons)}', values


def an_input(stream: str, inputs: Inputs, traffic: Traffic) -> Finding:
    """Whether messages come, and why not. The newest camera_info stays good; without depth frames go on in rgb."""
    silent_s = traffic.silent_s[stream]
    values = {'topic': inputs.streams[stream].topic_name, 'rate_hz': traffic.rates_hz[stream], 'messages': traffic.counts[stream],
              'publishers': inputs.publishers(stream), 'seconds_since_message': silent_s}
    if silent_s <= SILENT_S or (stream == 'camera_info' and traffic.counts[stream]):
        return OK, f'{traffic.rates_hz[stream]:.1f} Hz', values
    return WARN if stream == 'depth' else ERROR, f'no data for {silent_s:.0f} s: {inputs.why_silent(stream)}', values


def pairing(traffic: Traffic, slop_s: float) -> Finding:
    """Whether colour and depth have stamps that belong together."""
    paired, total = sum(traffic.paired), len(traffic.paired)
    values = {'median_gap_ms': traffic.median_gap_ms, 'slop_ms': 1e3 * slop_s, 'paired': paired, 'of_the_last_images': total,
              'unpaired_depths': traffic.unpaired_depths}
    if paired >= PAIRED_SHARE * total:
        return OK, f'{paired} of the last {total} images have their depth', values
    if traffic.median_gap_ms is None:
        return WARN, 'no depth image to pair with', values
    if traffic.median_gap_ms > 1e3 * slop_s:
        return WARN, f'stamps do not pair: median gap {traffic.median_gap_ms:.1f} ms, sync_slop is {1e3 * slop_s:.1f} ms', values
    return WARN, f'{total - paired} of the last {total} images went on without their depth: it came late, or not at all', values


def transforms(robot: Robot) -> Finding:
    """Whether TF has what the newest image needs."""
    missing = robot.placement.missing
    return WARN if missing else OK, missing or 'extrinsics and odometry as needed', robot.findings()


def timing(statuses: Sequence[LocalizationStatus]) -> Finding:
    """Stage times, latencies and drops over the frames whose statuses are kept."""
    values: dict[str, Any] = {}
    for name in ('latency_stamp_ms', 'latency_receive_ms'):
        values |= _percentiles(name, [getattr(status, name) for status in statuses])
    stages: dict[str, list[float]] = {}
    for status in statuses:
        for name, value in zip(status.stage_names, status.stage_times_ms):
            stages.setdefault(name, []).append(value)
    for name, times in stages.items():
        values |= _percentiles(f'stage.{name}_ms', times)
    torch = sys.modules.get('torch')
    if torch is not None and torch.cuda.is_initialized():
        values['gpu_memory_mb'] = torch.cuda.memory_allocated() / 1e6
    if len(statuses) < 2:
        return OK, 'no frames', values
    received, dropped = (getattr(statuses[-1], name) - getattr(statuses[0], name) for name in ('frames_received', 'frames_dropped'))
    values['dropped_share'] = dropped / max(1, received)
    text = f'{dropped} of the last {received} images dropped: newer ones came before their turn'
    return WARN if values['dropped_share'] > DROPPED_SHARE else OK, text, values


def _percentiles(name: str, values: Sequence[float]) -> Mapping[str, float]:
    finite = [value for value in values if np.isfinite(value)]
    return {f'{name}.p{p}': float(np.percentile(finite, p)) for p in (50, 95)} if finite else {}
