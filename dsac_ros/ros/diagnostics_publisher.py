"""What a node finds of itself, once a second on /diagnostics."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile

PERIOD_S = 1.0
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
Finding = tuple[bytes, str, dict[str, Any]]  # level, message, values


class DiagnosticsPublisher:
    """The timer and the publisher, as long as the node lives. findings: part -> what is found of it."""

    def __init__(self, node: Node, findings: Callable[[], dict[str, Finding]]) -> None:
        self._node, self._findings = node, findings
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', QoSProfile(depth=10))
        # Simulated time stands still when a bag is paused, and that is when people look.
        node.create_timer(PERIOD_S, self._publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _publish(self) -> None:
        message = DiagnosticArray()
        message.header.stamp = self._node.get_clock().now().to_msg()
        name = self._node.get_fully_qualified_name().lstrip('/')
        for part, (level, text, values) in self._findings().items():
            message.status.append(DiagnosticStatus(level=level, name=f'{name}: {part}', message=text, hardware_id='', values=[
                KeyValue(key=key, value=_text(value)) for key, value in values.items()]))
        self._publisher.publish(message)


def _text(value: Any) -> str:
    return f'{value:.3f}' if isinstance(value, float) else '' if value is None else str(value)
