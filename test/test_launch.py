"""Launch files: arguments that are described, parameters that the node has, and a node that really starts."""
from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from dsac_ros.config import FinetunerOptions, FinetuningOptions, NodeOptions, SourceOptions
from dsac_ros.evaluation.options import EvaluationOptions
from dsac_ros.ros.dds import PROFILE_VARIABLES

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / 'launch').glob('*.launch.py'))


def table(path: Path, name: str) -> list[list[str]]:
    """The rows of a constant table in a launch file, as source text, without importing launch."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            assert isinstance(node.value, ast.Tuple)
            return [[ast.unparse(cell) for cell in row.elts] for row in node.value.elts if isinstance(row, ast.Tuple)]
    raise AssertionError(f'{path.name} has no {name}')


def test_arguments_of_localize_are_parameters_of_the_node() -> None:
    known = {option.name: type(option.default).__name__ for option in fields(NodeOptions)}
    for name, kind, _ in table(ROOT / 'launch/localize.launch.py', 'PARAMETERS'):
        assert known.get(ast.literal_eval(name)) == kind, f'{name} is not a {kind} parameter of the node'


def test_arguments_of_finetune_are_parameters_of_the_node() -> None:
    groups = {'': FinetunerOptions, 'training.': FinetuningOptions, 'source.': SourceOptions}
    kinds = {'tuple': 'List[str]'}
    known = {prefix + option.name: type(option.default).__name__ for prefix, group in groups.items() for option in fields(group)}
    rows = table(ROOT / 'launch/finetune.launch.py', 'PARAMETERS')
    for name, kind, _ in rows:
        given = known.get(ast.literal_eval(name))
        assert kinds.get(given, given) == kind, f'{name} is not a {kind} parameter of the node'
    assert {'map', 'bags', 'out'} <= {ast.literal_eval(name) for name, _, _ in rows}


def test_arguments_of_localize_are_few_and_safe() -> None:
    source = (ROOT / 'launch/localize.launch.py').read_text()
    names = re.findall(r"DeclareLaunchArgument\('(\w+)', default_value='?(\w*)", source)
    assert len(names) + len(table(ROOT / 'launch/localize.launch.py', 'PARAMETERS')) <= 15
    assert dict(names)['use_sim_time'] == dict(names)['respawn'] == dict(names)['rviz'] == 'false'


CAMERAS = ('realsense', 'orbbec', 'usb_camera')


@pytest.mark.parametrize('name', CAMERAS)
def test_topics_of_a_camera_are_arguments_of_localize(name: str) -> None:
    known = {ast.literal_eval(row[0]): ast.literal_eval(row[2]) for row in table(ROOT / 'launch/localize.launch.py', 'PARAMETERS')}
    module: dict[str, object] = {}
    for node in ast.parse((ROOT / f'launch/{name}.launch.py').read_text()).body:
        if isinstance(node, ast.Assign):
            exec(compile(ast.Module([node], []), name, 'exec'), module)
    topics = module['TOPICS']
    assert isinstance(topics, dict) and set(topics) <= set(known)
    assert all(value.startswith('/') for argument, value in topics.items() if argument.endswith('_topic')), 'whatever the namespace'
    assert 'depth_topic' in topics or topics['modality'] == 'rgb'


def test_what_rviz_shows_is_published() -> None:
    """Topics of config/localize.rviz, their types and durability, against the publishers of the node; and all follow the namespace."""
    rviz = yaml.safe_load((ROOT / 'config/localize.rviz').read_text())['Visualization Manager']
    shown = {display['Topic']['Value']: display for display in rviz['Displays'] if 'Topic' in display}
    source = (ROOT / 'dsac_ros/ros/pictures.py').read_text()
    made = {f'/localizer/{name}': kind for kind, name in re.findall(r"create_publisher\((\w+), '~/(\w+)'", source)}
    assert set(shown) == {*made, '/pose'}
    for topic, display in shown.items():
        assert display['Class'].split('/')[1] == made.get(topic, 'PoseWithCovariance')
        assert (display['Topic']['Durability Policy'] == 'Transient Local') == (topic == '/localizer/map_points')
    follows = ast.literal_eval(re.search(r'SHOWN = (\(.*?\))\n', (ROOT / 'launch/localize.launch.py').read_text(), re.S)[1])
    assert {topic.lstrip('/') for topic in shown} <= set(follows)


def test_flags_of_evaluate_are_flags_of_the_command() -> None:
    known = {option.name for option in fields(EvaluationOptions)} | {'out', 'split'}
    assert {ast.literal_eval(name) for name, _ in table(ROOT / 'launch/evaluate.launch.py', 'FLAGS')} <= known


def describe(path: Path):
    pytest.importorskip('launch_ros')
    from launch.launch_description_sources import get_launch_description_from_python_launch_file
    return get_launch_description_from_python_launch_file(str(path))


@pytest.mark.ros
@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_every_argument_is_described(path: Path) -> None:
    arguments = describe(path).get_launch_arguments()
    assert len(arguments) >= 2
    for argument in arguments:
        assert argument.description and argument.description != 'no description given', argument.name


def actions(path: Path, **given: str) -> list:
    """What the launch file would start with these arguments."""
    description = describe(path)
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument, OpaqueFunction
    context = LaunchContext()
    context.launch_configurations.update(given)
    started = []
    for entity in description.entities:
        assert isinstance(entity, (DeclareLaunchArgument, OpaqueFunction))
        started += entity.execute(context) or [] if isinstance(entity, OpaqueFunction) else entity.visit(context) or []
    for action in started:
        action.prepare(context)
    return started


@pytest.mark.ros
def test_evaluate_makes_the_command_line() -> None:
    [process] = actions(ROOT / 'launch/evaluate.launch.py', map='a.dsacmap', bag='b', split='val', live='true')
    words = process.process_details['cmd']
    assert Path(words[0]).name == 'dsac-ros' and words[1:] == ['evaluate', 'a.dsacmap', 'b', '--live', '--split', 'val']


RUN = '''
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription, RegisterEventHandler, Shutdown
from launch.event_handlers import OnProcessExit
from launch.launch_description_sources import PythonLaunchDescriptionSource
arguments = [tuple(word.split(':=')) for word in sys.argv[2:]]
codes = []
def ended(event, context):
    codes.append(event.returncode)
    return [Shutdown()]
service = LaunchService()
service.include_launch_description(LaunchDescription([
    RegisterEventHandler(OnProcessExit(on_exit=ended)),
    IncludeLaunchDescription(PythonLaunchDescriptionSource(sys.argv[1]), launch_arguments=arguments)]))
service.run()
print('exit codes', codes)
'''
SHOW_IMAGE_TOPIC = '''service.run()
print('image topic', repr(service.context.launch_configurations['image_topic']))'''


def launched(path: Path, folder: Path, *arguments: str, program: str = RUN) -> str:
    pytest.importorskip('launch_ros')
    done = subprocess.run([sys.executable, '-c', program, str(path), *arguments], cwd=folder, text=True, timeout=120,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {'ROS_LOG_DIR': str(folder)})
    return done.stdout


@pytest.mark.ros
def test_launch_really_starts_the_node(tmp_path: Path) -> None:
    """The executable is found, and the arguments reach it: it refuses the very map that it was given."""
    out = launched(ROOT / 'launch/localize.launch.py', tmp_path, 'map:=/no/such.dsacmap', 'autostart:=true', 'namespace:=front',
                   'use_sim_time:=true', 'log_level:=warn')
    assert '/no/such.dsacmap' in out and 'exit codes [1]' in out, out


@pytest.mark.ros
def test_launch_really_starts_the_finetuner(tmp_path: Path) -> None:
    out = launched(ROOT / 'launch/finetune.launch.py', tmp_path, 'map:=/no/such.dsacmap', 'bags:=[/no/such/bag]', 'nice:=20')
    assert 'parameter.nice' in out and 'exit codes [1]' in out, out


@pytest.mark.ros
@pytest.mark.parametrize('name', CAMERAS)
def test_a_camera_without_its_driver_is_the_localizer(name: str, tmp_path: Path) -> None:
    """The driver runs already; what is no argument of the camera's file goes through to localize.launch.py."""
    out = launched(ROOT / f'launch/{name}.launch.py', tmp_path, 'map:=/no/such.dsacmap', 'driver:=false', 'log_level:=warn')
    assert '/no/such.dsacmap' in out and 'exit codes [1]' in out and 'Traceback' not in out, out


@pytest.mark.ros
@pytest.mark.parametrize('name', CAMERAS)
def test_a_topic_that_is_given_wins(name: str, tmp_path: Path) -> None:
    out = launched(ROOT / f'launch/{name}.launch.py', tmp_path, 'map:=/no/such.dsacmap', 'driver:=false',
                   'image_topic:=/mine', program=RUN.replace('service.run()', SHOW_IMAGE_TOPIC))
    assert "image topic '/mine'" in out, out


@pytest.mark.ros
@pytest.mark.parametrize('name', ['localize', *CAMERAS])
def test_images_have_room(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set before anything is started, the driver of the camera included."""
    pytest.importorskip('launch_ros')
    from launch.actions import SetEnvironmentVariable
    for variable in PROFILE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    kinds = [type(entity) for entity in describe(ROOT / f'launch/{name}.launch.py').entities]
    starting = ('Node', 'GroupAction', 'OpaqueFunction', 'IncludeLaunchDescription')
    starts = [index for index, kind in enumerate(kinds) if kind.__name__ in starting]
    assert kinds.index(SetEnvironmentVariable) < min(starts)
    monkeypatch.setenv(PROFILE_VARIABLES[0], '/home/me/profile.xml')
    assert SetEnvironmentVariable not in [type(entity) for entity in describe(ROOT / f'launch/{name}.launch.py').entities]


@pytest.mark.ros
def test_a_node_that_has_ended_is_started_again(tmp_path: Path) -> None:
    pytest.importorskip('launch_ros')
    again = RUN.replace('return [Shutdown()]', 'return [Shutdown()] if len(codes) == 2 else []')
    out = launched(ROOT / 'launch/localize.launch.py', tmp_path, 'map:=/no/such.dsacmap', 'respawn:=true', program=again)
    assert 'exit codes [1, 1]' in out, out


@pytest.mark.ros
def test_launch_really_starts_the_evaluation(tmp_path: Path) -> None:
    out = launched(ROOT / 'launch/evaluate.launch.py', tmp_path, 'map:=/no/such.dsacmap', 'bag:=/no/such/bag')
    assert '/no/such' in out and 'exit codes [1]' in out and 'Traceback' not in out, out
