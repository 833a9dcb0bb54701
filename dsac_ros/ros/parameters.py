"""ROS parameters out of the option groups of dsac_ros.config: declared once, described, checked, unknown names refused."""
from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields, replace
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from dsac_ros.config import (
    LOCALIZER_GROUPS,
    PRECISION,
    FinetunerOptions,
    FinetuningOptions,
    NodeOptions,
    Options,
    SourceOptions,
    check_value,
    nearest,
    with_precision,
)
from dsac_ros.errors import ConfigError

# Node -> prefix -> options.
GROUPS: dict[str, dict[str, type[Options]]] = {
    'localizer': {'': NodeOptions, **LOCALIZER_GROUPS},
    'finetuner': {'': FinetunerOptions, 'training': FinetuningOptions, 'source': SourceOptions},
}
FILES = {'localizer': 'localize', 'finetuner': 'finetune'}  # config/NAME.yaml, launch/NAME.launch.py
# Parameters that rclpy itself declares.
BUILT_IN = ('use_sim_time', 'start_type_description_service')
DIALLED = {name for values in PRECISION.values() for name in values}
QOS_OVERRIDES = 'qos_overrides.'


def descriptor(option: Field) -> ParameterDescriptor:
    """Description with unit, range, choices and whether the parameter may be set while the node runs."""
    meta = option.metadata
    text = meta['help'] + (f' [{meta["unit"]}]' if meta['unit'] else '')
    out = ParameterDescriptor(description=text, read_only=meta['read_only'])
    if meta['choices']:
        out.additional_constraints = 'one of: ' + ', '.join(meta['choices'])
    low, high = meta['low'], meta['high']
    if low is not None or high is not None:
        if isinstance(option.default, float):
            out.floating_point_range = [FloatingPointRange(from_value=float(low if low is not None else -sys.float_info.max),
                                                           to_value=float(high if high is not None else sys.float_info.max))]
        else:
            out.integer_range = [IntegerRange(from_value=int(low if low is not None else -2 ** 63),
                                              to_value=int(high if high is not None else 2 ** 63 - 1))]
    return out


def declare(node: Node, groups: Mapping[str, type[Options]]) -> dict[str, Any]:
    """Declare every option of every group, as PREFIX.NAME or NAME for the prefix '', and return the groups with the values given.

    Raises ConfigError, in one line, for an unknown name (with the nearest known one), a wrong type or a value out of range.
    """
    given = with_precision(overrides(node))
    known = {_join(prefix, option.name): option for prefix, group in groups.items() for option in fields(group)}
    for name in given:
        if name not in known and name not in BUILT_IN and not name.startswith(QOS_OVERRIDES):
            raise ConfigError(f'parameter {name}: unknown{nearest(name, known)}')
    values = {}
    for name, option in known.items():
        value = given.get(name, option.default)
        if isinstance(option.default, float) and type(value) is int:
            value = float(value)  # `sync_slop: 1` in a YAML file is an integer
        if isinstance(option.default, tuple):
            value = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value  # one text is a list too
        check_value('parameter', name, value, option.default, option.metadata)
        values[name] = value
        node.declare_parameter(name, list(value) if isinstance(value, tuple) else value, descriptor(option), ignore_override=True)
    node.add_on_set_parameters_callback(lambda given: _checked(known, given))
    return {prefix: group(**{option.name: values[_join(prefix, option.name)] for option in fields(group)})
            for prefix, group in groups.items()}


def changed(groups: Mapping[str, Options], values: Mapping[str, Any]) -> dict[str, Options]:
    """The groups with some values, by full name, replaced; names that are none of theirs are left out. Raises ConfigError."""
    out = {}
    for prefix, group in groups.items():
        own = {option.name: values[name] for option in fields(group) if (name := _join(prefix, option.name)) in values}
        out[prefix] = replace(group, **own)
    return out


def _checked(known: Mapping[str, Field], given: Iterable[Parameter]) -> SetParametersResult:
    # rclpy has a tolerance at the ends of a range, beyond which our own groups accept nothing.
    try:
        for parameter in given:
            if parameter.name in known and not known[parameter.name].metadata['read_only']:
                option = known[parameter.name]
                check_value('parameter', parameter.name, parameter.value, option.default, option.metadata)
    except ConfigError as error:
        return SetParametersResult(successful=False, reason=str(error))
    return SetParametersResult(successful=True)


def refusal(known: Iterable[str], given: Iterable[str]) -> SetParametersResult:
    """The answer to who sets names of which one is unknown; rclpy's own does not say what it may have been meant for."""
    known = list(known)
    name = next(name for name in given if name not in known)
    return SetParametersResult(successful=False, reason=f'parameter {name}: unknown{nearest(name, known)}')


def overrides(node: Node) -> dict[str, Any]:
    """The values given on the command line and in parameter files for this node."""
    # rclpy has no public way to see the overrides of undeclared parameters short of declaring them all without a description.
    return {name: parameter.value for name, parameter in node._parameter_overrides.items()}


def parameter_file(node_name: str, groups: Mapping[str, type[Options]]) -> str:
    """The YAML parameter file with every default, commented; config/*.yaml are written by this and tests compare."""
    lines = [f'# Parameters of the node {node_name} with their defaults. Written by', f'#   python -m dsac_ros.ros.parameters {node_name}',
             '/**:', '  ros__parameters:']
    for prefix, group in groups.items():
        indent = ' ' * (6 if prefix else 4)
        lines += [f'    {prefix}:'] if prefix else []
        for option in fields(group):
            meta = option.metadata
            limits = [f'unit {meta["unit"]}'] if meta['unit'] else []
            limits += [text for text in (_range(option),) if text]
            text = meta['help'] + (f' ({"; ".join(limits)})' if limits else '')
            lines += textwrap.wrap(text, 120, initial_indent=f'{indent}# ', subsequent_indent=f'{indent}# ')
            # A file that comes after `-p map:=...` would take the map away again, and what it sets the precision could not move.
            switch = '# ' if meta['help'].endswith('Required.') or _join(prefix, option.name) in DIALLED else ''
            lines += [f'{indent}{switch}{option.name}: {_yaml(option.default)}']
    return '\n'.join(lines) + '\n'


def references() -> str:
    """docs/parameters.md."""
    return '\n'.join(reference(node_name, groups) for node_name, groups in GROUPS.items())


def reference(node_name: str, groups: Mapping[str, type[Options]]) -> str:
    """Every parameter of a node in tables, one for each prefix."""
    lines = [f'# Parameters of the node `{node_name}`', '', 'Written by `python -m dsac_ros.ros.parameters docs`; a test compares.', '',
             f'Set them in a parameter file (`config/{FILES[node_name]}.yaml` has them all) or by `-p NAME:=VALUE`. A name that is',
             'unknown, a wrong type and a value out of range are refused when the node starts, in one line. Those marked *run time* can',
             'be set while it runs (`ros2 param set`) and count from the next frame on; the others are read-only.']
    for prefix, group in groups.items():
        lines += ['', f'## {prefix or "The node"}', '', (group.__doc__ or '').strip().replace('\n', ' '), '',
                  '| name | default | unit | range | run time | what |', '|---|---|---|---|---|---|']
        for option in fields(group):
            meta = option.metadata
            cells = (f'`{_join(prefix, option.name)}`', f'`{_yaml(option.default)}`', meta['unit'], _range(option),
                     '' if meta['read_only'] else 'yes', meta['help'].replace('|', '\\|'))
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def _range(option: Field) -> str:
    low, high, choices = option.metadata['low'], option.metadata['high'], option.metadata['choices']
    if choices:
        return 'one of: ' + ', '.join(choices)
    return '' if low is None and high is None else f'{"" if low is None else low} to {"" if high is None else high}'


def _join(prefix: str, name: str) -> str:
    return f'{prefix}.{name}' if prefix else name


def _yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return str(list(value))
    return str(value).lower() if isinstance(value, bool) else f"'{value}'" if isinstance(value, str) else str(value)


if __name__ == '__main__':
    if sys.argv[1] == 'docs':
        print(references(), end='')
    else:
        print(parameter_file(sys.argv[1], GROUPS[sys.argv[1]]), end='')
