"""The options of an evaluation, once: command line and summary.json come from here. What is read has its own, in data.opening."""
from __future__ import annotations

from dataclasses import dataclass

from dsac_ros.config import Options, option


@dataclass(frozen=True)
class EvaluationOptions(Options):
    """How a map is evaluated on a source of frames."""

    modality: str = option('auto', 'what the localizer may see; auto: rgbd where the first frame has depth, else rgb',
                           choices=('auto', 'rgb', 'rgbd'))
    live: bool = option(False, 'play the source over DDS to the real node in its own process and collect what it publishes (needs ROS 2)')
    rate: float = option(1.0, 'speed of the replay with --live, as a multiple of true time', low=0.01, high=100.0)
    device: str = option('auto', 'where the network runs: auto, cpu, cuda or cuda:N')
    frames: int = option(0, 'stop after that many frames; 0: all', low=0)
    every: int = option(1, 'take every k-th frame only', low=1)
