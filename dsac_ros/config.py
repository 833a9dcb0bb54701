"""Every option once: default, unit, range and help. YAML files, ROS parameters, command lines and docs come from here."""
from __future__ import annotations

import difflib
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dsac_ros.errors import ConfigError

T = TypeVar('T')


def option(default: Any, text: str, *, unit: str = '', low: float | None = None, high: float | None = None,
           choices: tuple[str, ...] = (), read_only: bool = True) -> Any:
    """A dataclass field that knows its own documentation and limits; `read_only` ones are set at start-up only."""
    return field(default=default, metadata={'help': text, 'unit': unit, 'low': low, 'high': high,
                                            'choices': choices, 'read_only': read_only})


class Options:
    """Base of the option groups: every value is checked on construction, wherever it came from."""

    def __post_init__(self) -> None:
        for f in fields(self):
            check_value(type(self).__name__, f.name, getattr(self, f.name), f.default, f.metadata)


def check_value(group: str, name: str, value: Any, default: Any, limits: Any) -> None:
    """Raise ConfigError when a value has the wrong type or lies outside of its range."""
    kind = type(default)
    good = isinstance(value, (int, float)) and not isinstance(value, bool) if kind is float else type(value) is kind
    if not good:
        raise ConfigError(f'{group}.{name}: expected {kind.__name__}, found {value!r}')
    if limits['choices'] and value not in limits['choices']:
        raise ConfigError(f'{group}.{name}: expected one of {", ".join(limits["choices"])}, found {value!r}')
    low, high = limits['low'], limits['high']
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        raise ConfigError(f'{group}.{name}: expected {low if low is not None else "-inf"} to '
                          f'{high if high is not None else "inf"} {limits["unit"]}'.rstrip() + f', found {value!r}')


def from_dict(group: type[T], values: dict[str, Any]) -> T:
    """Build an option group from a mapping; an unknown key is refused with the nearest known one."""
    known = [f.name for f in fields(group)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f'; did you mean {near[0]!r}?' if near else f'; known: {", ".join(known)}'
            raise ConfigError(f'{group.__name__}: unknown option {key!r}{hint}')
    return group(**values)
