"""Only dsac_ros/ros imports ROS, and data flows downward."""
from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / 'dsac_ros').rglob('*.py'))
ROS_FREE = [path for path in SOURCES if 'ros' not in path.relative_to(ROOT / 'dsac_ros').parts[:-1]]
ROS_NAMES = ('rclpy', 'rcl_interfaces', 'rosgraph_msgs', 'lifecycle_msgs', 'builtin_interfaces', 'ament_index_python', 'launch',
             'launch_ros', 'cv_bridge', 'message_filters', 'diagnostic_updater', 'image_transport', 'rosbag2_py', 'rosidl_runtime_py')
ROS_PREFIXES = ('tf2_', 'rosbag2', 'rosidl')
ROS_SUFFIXES = ('_msgs', '_srvs', '_interfaces')


def imported(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Line, full module name, and whether it is imported when the module is (not in a function), of every import."""
    def visit(node: ast.AST, at_import: bool) -> Iterator[tuple[int, str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((child.lineno, alias.name, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f'{path}:{child.lineno}: relative import'
                yield from ((child.lineno, f'{child.module}.{alias.name}', at_import) for alias in child.names)
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from visit(child, at_import and not inside)
    yield from visit(ast.parse(path.read_text()), True)


def is_ros(module: str) -> bool:
    top = module.split('.')[0]
    if top in ('dsac_ros', 'rosbags'):
        return module.startswith(('dsac_ros.msg', 'dsac_ros.srv', 'dsac_ros.action'))
    return top in ROS_NAMES or top.startswith(ROS_PREFIXES) or top.endswith(ROS_SUFFIXES)


@pytest.mark.parametrize('module, expected', [
    ('rclpy.node', True), ('sensor_msgs.msg.Image', True), ('tf2_ros', True), ('dsac_ros.msg.LocalizationStatus', True),
    ('rosbags.highlevel', False), ('numpy', False), ('dsac_ros.records', False)])
def test_the_rule_knows_ros(module: str, expected: bool) -> None:
    assert is_ros(module) == expected


@pytest.mark.parametrize('path', ROS_FREE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_ros_outside_of_dsac_ros_ros(path: Path) -> None:
    found = [f'{path.relative_to(ROOT)}:{line}: {module}' for line, module, _ in imported(path) if is_ros(module)]
    assert not found, 'only dsac_ros/ros may import ROS: ' + ', '.join(found)


@pytest.mark.parametrize('path', ROS_FREE, ids=lambda path: str(path.relative_to(ROOT)))
def test_dsac_ros_ros_is_imported_late(path: Path) -> None:
    found = [f'{path.relative_to(ROOT)}:{line}' for line, module, at_import in imported(path)
             if at_import and module.startswith('dsac_ros.ros')]
    assert not found, 'import dsac_ros.ros inside of the function that needs it: ' + ', '.join(found)


# Who may not import whom: the low know nothing of the high (docs/architecture.md, section 2).
LAYERS = {'geometry': 0, 'ransac': 1, 'networks': 1, 'endtoend': 2, 'maps': 2, 'localizer': 3}


@pytest.mark.parametrize('path', ROS_FREE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_upward(path: Path) -> None:
    own = LAYERS.get(path.relative_to(ROOT / 'dsac_ros').with_suffix('').parts[0])
    if own is None:
        return
    above = ('training', 'evaluation', 'commands', 'cli', 'ros', *(name for name, layer in LAYERS.items() if layer > own))
    found = [f'{path.relative_to(ROOT)}:{line}: {module}' for line, module, _ in imported(path)
             if module.startswith('dsac_ros.') and module.split('.')[1] in above]
    assert not found, 'imports upward: ' + ', '.join(found)


BLOCKED = '''
import importlib, sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('rclpy', 'sensor_msgs', 'geometry_msgs', 'std_msgs', 'tf2_msgs') or name == 'dsac_ros.msg':
            raise ModuleNotFoundError(f'{name} is blocked', name=name)

sys.meta_path.insert(0, Blocked())
for name in sys.argv[1:]:
    importlib.import_module(name)
assert 'rclpy' not in sys.modules
'''


def test_everything_outside_of_dsac_ros_ros_imports_without_ros(tmp_path: Path) -> None:
    names = ['.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__') for path in ROS_FREE]
    done = subprocess.run([sys.executable, '-c', BLOCKED, *names], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
