"""Parameters: declared once, described, checked; the shipped file is what the code says."""
from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

rclpy = pytest.importorskip('rclpy')
from rcl_interfaces.srv import SetParameters  # noqa: E402
from rclpy.context import Context  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402

from dsac_ros.config import IntegrityOptions, NodeOptions, Options, option  # noqa: E402
from dsac_ros.errors import ConfigError  # noqa: E402
from dsac_ros.ros import parameters, sensor_messages  # noqa: E402
from dsac_ros.ros.live_replay import Player  # noqa: E402

pytestmark = pytest.mark.ros
FILE = Path(__file__).parents[2] / 'config' / 'localize.yaml'


@pytest.fixture
def context(domain_id: int) -> Iterator[Context]:
    context = Context()
    rclpy.init(context=context, domain_id=domain_id)
    yield context
    context.try_shutdown()


def node_with(context: Context, **values: Any) -> Node:
    overrides = [Parameter(name.replace('__', '.'), value=value) for name, value in values.items()]
    return Node('some_node', context=context, parameter_overrides=overrides)


@pytest.mark.parametrize('node_name', parameters.GROUPS)
def test_the_shipped_file_is_generated(node_name: str) -> None:
    file = FILE.with_stem(parameters.FILES[node_name])
    assert file.read_text() == parameters.parameter_file(node_name, parameters.GROUPS[node_name]), \
        f'run: python -m dsac_ros.ros.parameters {node_name} > config/{file.name}'


def test_the_reference_is_generated() -> None:
    assert (FILE.parents[1] / 'docs' / 'parameters.md').read_text() == parameters.references(), \
        'run: python -m dsac_ros.ros.parameters docs > docs/parameters.md'


def test_the_reference_has_every_parameter_with_its_default() -> None:
    rows = [line for line in parameters.reference('localizer', parameters.GROUPS['localizer']).splitlines() if line.startswith('| `')]
    names = [f'{prefix}.{f.name}'.lstrip('.') for prefix, group in parameters.GROUPS['localizer'].items() for f in fields(group)]
    assert [row.split('`')[1] for row in rows] == names and all(row.count(' | ') == 5 for row in rows)
    assert '| `state.agreeing` | `2` |  | 1 to 100 |  |' in '\n'.join(rows) and '| m | 0.0 to 1000.0 | yes |' in '\n'.join(rows)


def test_the_shipped_file_round_trips(context: Context) -> None:
    node = Node('some_node', context=context, cli_args=['--ros-args', '--params-file', str(FILE)])
    assert len(parameters.overrides(node)) >= len(fields(NodeOptions)) - 1
    declared = parameters.declare(node, parameters.GROUPS['localizer'])
    assert declared == {prefix: group() for prefix, group in parameters.GROUPS['localizer'].items()}
    shipped = yaml.safe_load(FILE.read_text())['/**']['ros__parameters']
    assert 'map' not in shipped, 'after `-p map:=...` it would take the map away again'
    for name in (f.name for f in fields(NodeOptions) if f.name != 'map'):
        assert node.get_parameter(name).value == shipped[name]


def test_every_parameter_is_described(context: Context) -> None:
    node = node_with(context)
    parameters.declare(node, {'': NodeOptions})
    for f in fields(NodeOptions):
        descriptor = node.describe_parameter(f.name)
        assert descriptor.description.startswith(f.metadata['help']) and descriptor.read_only == f.metadata['read_only']
        assert f.metadata['unit'] in descriptor.description
        assert bool(descriptor.floating_point_range or descriptor.integer_range) == (f.metadata['low'] is not None)


def test_values_arrive_and_integers_pass_for_floats(context: Context) -> None:
    options = parameters.declare(node_with(context, map='a', sync_slop=1, threads=3), {'': NodeOptions})['']
    assert (options.map, options.sync_slop, options.threads) == ('a', 1.0, 3)


@pytest.mark.parametrize('values, words', [
    ({'mpa': 'x'}, ['mpa', 'unknown', 'did you mean map?']),
    ({'estimator__sync_slop': 0.1}, ['estimator.sync_slop', 'unknown']),
    ({'sync_slop': -0.5}, ['sync_slop', '0.0 to 1.0 s', '-0.5']),
    ({'threads': 1.5}, ['threads', 'expected int', '1.5']),
    ({'modality': 'lidar'}, ['modality', 'rgbd, rgb', 'lidar']),
    ({'map': 3}, ['map', 'expected str', '3']),
])
def test_bad_overrides_are_refused_in_one_line(context: Context, values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        parameters.declare(node_with(context, **values), {'': NodeOptions})
    assert all(word in str(refusal.value) for word in words) and '\n' not in str(refusal.value)


def test_rclpys_own_parameters_are_no_strangers(context: Context) -> None:
    node = node_with(context, use_sim_time=False, qos_overrides__='x')
    parameters.declare(node, {'': NodeOptions})


def test_groups_with_a_prefix(context: Context) -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Oven(Options):
        heat: float = option(180.0, 'How hot.', unit='C', low=0.0, high=300.0, read_only=False)

    node = node_with(context, oven__heat=200)
    assert parameters.declare(node, {'': NodeOptions, 'oven': Oven})['oven'].heat == 200.0
    assert not node.set_parameters([Parameter('oven.heat', value=999.0)])[0].successful
    assert node.set_parameters([Parameter('oven.heat', value=99.0)])[0].successful
    assert not node.set_parameters([Parameter('map', value='other')])[0].successful, 'read-only'
    text = parameters.parameter_file('baker', {'oven': Oven})
    assert yaml.safe_load(text) == {'/**': {'ros__parameters': {'oven': {'heat': 180.0}}}}


def test_changed_groups_are_checked_and_others_left_alone() -> None:
    groups = {'': NodeOptions(), 'integrity': IntegrityOptions()}
    after = parameters.changed(groups, {'integrity.min_spread': 0.7, 'use_sim_time': True})
    assert after['integrity'].min_spread == 0.7 and after[''] == groups[''] and groups['integrity'].min_spread == 0.4
    with pytest.raises(ConfigError, match='min_spread.*0.0 to 1.0.*1.5'):
        parameters.changed(groups, {'integrity.min_spread': 1.5})


def test_thresholds_count_from_the_next_frame_on(domain_id: int, small_room: Any, node_in_process: Any, call: Any) -> None:
    """Through the node's own service, as `ros2 param set` does it: good values act, bad ones change nothing, read-only ones stay."""
    path, frames = small_room

    def put(player: Player, name: str, value: Any) -> Any:
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        return call(player, SetParameters, 'set_parameters', request).results[0]

    def show(player: Player) -> Any:
        stamp = time.time_ns()
        player.send(stamp, sensor_messages.camera_info_message(frames[0].camera), sensor_messages.colour_message(frames[0].image))
        assert player.wait_for(lambda: stamp in player.statuses, 30.0)
        return player.statuses[stamp]

    parameters_of_node = {'map': str(path), 'modality': 'rgb', 'tracking.enabled': False, 'state.agreeing': 1}
    with node_in_process(domain_id, **parameters_of_node) as target, Player(target, False) as player:
        player.wait_until_ready()
        assert show(player).accepted
        assert put(player, 'integrity.max_position_deviation', 1e-6).successful
        assert list(show(player).reasons) == ['uncertain_position']
        for value in (-1.0, float('nan'), 'much'):
            result = put(player, 'integrity.max_position_deviation', value)
            assert not result.successful and result.reason
        assert list(show(player).reasons) == ['uncertain_position']
        assert put(player, 'integrity.max_position_deviation', 0.5).successful and show(player).accepted
        assert put(player, 'state.weak_position', 0.0).successful and list(show(player).reasons) == ['weak_position']
        assert put(player, 'state.weak_position', 10.0).successful and not show(player).reasons
        for name, value in (('sync_slop', 0.5), ('integrity.min_inlier', 1.0), ('state.agreeing', 2)):
            assert not put(player, name, value).successful
        assert 'did you mean integrity.min_inliers?' in put(player, 'integrity.min_inlier', 1.0).reason
        assert show(player).accepted


def test_every_threshold_can_be_set_while_it_runs_and_no_further(context: Context) -> None:
    """All that are not read-only, to both ends of their range and past them; what the group says afterwards is what was taken."""
    node = node_with(context)
    groups = parameters.declare(node, parameters.GROUPS['localizer'])
    settable = [(prefix, f) for prefix, group in groups.items() for f in fields(group) if not f.metadata['read_only']]
    assert len(settable) >= 10 and all(prefix in ('integrity', 'state') for prefix, _ in settable)
    for prefix, f in settable:
        name, low, high = f'{prefix}.{f.name}', f.metadata['low'], f.metadata['high']
        if low is None or high is None:
            continue
        for value, good in ((low, True), (high, True), (high + 1, False), (low - 1, False), ('much', False), (f.default, True)):
            assert node.set_parameters([Parameter(name, value=value)])[0].successful == good, (name, value)
        assert node.get_parameter(name).value == f.default
    locked = [f'{prefix}.{f.name}'.lstrip('.') for prefix, group in groups.items() for f in fields(group) if f.metadata['read_only']]
    for name in locked:
        assert not node.set_parameters([node.get_parameter(name)])[0].successful, name


def test_the_precision_moves_what_the_shipped_file_leaves_open(context: Context) -> None:
    node = Node('some_node', context=context, cli_args=['--ros-args', '--params-file', str(FILE), '-p', 'integrity.precision:=high',
                                                        '-p', 'integrity.min_spread:=0.1'])
    declared = parameters.declare(node, parameters.GROUPS['localizer'])
    assert declared['state'].agreeing == 3 and declared['integrity'].min_inliers == 60.0 and declared['integrity'].min_spread == 0.1
    assert node.get_parameter('integrity.min_inliers').value == 60.0
