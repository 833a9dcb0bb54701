"""One version, pinned requirements, and an overlay that lets new modules and messages live under one name."""
from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import dsac_ros

ROOT = Path(__file__).resolve().parents[1]
CMAKE = (ROOT / 'CMakeLists.txt').read_text()
REQUIREMENTS = sorted((ROOT / 'requirements').glob('*.txt'))


def pins(name: str) -> dict[str, Requirement]:
    lines = [line.split('#')[0].strip() for line in (ROOT / 'requirements' / name).read_text().splitlines()]
    return {requirement.name.lower().replace('_', '-'): requirement for requirement in map(Requirement, filter(None, lines))}


def ranges() -> dict[str, Requirement]:
    listed = re.search(r'install_requires=\[(.*?)\]', (ROOT / 'setup.py').read_text(), re.S)
    assert listed
    return {requirement.name: requirement for requirement in map(Requirement, re.findall(r"'([^']+)'", listed.group(1)))}


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, env=os.environ | environment)


def test_one_version() -> None:
    package = ElementTree.parse(ROOT / 'package.xml').getroot()
    setup = run(sys.executable, 'setup.py', '--version')
    newest = re.search(r'^(\d+\.\d+\.\d+) \(', (ROOT / 'CHANGELOG.rst').read_text(), re.M)
    assert newest
    assert {package.findtext('version'), setup.stdout.strip().splitlines()[-1], newest.group(1)} == {dsac_ros.__version__}


@pytest.mark.parametrize('path', REQUIREMENTS, ids=lambda path: path.name)
def test_every_requirement_is_pinned(path: Path) -> None:
    loose = [str(requirement) for requirement in pins(path.name).values() if not re.fullmatch(r'==[^*,]+', str(requirement.specifier))]
    assert not loose


def test_pins_lie_in_the_ranges_of_setup_py() -> None:
    pinned, wanted = pins('base.txt'), ranges()
    assert set(wanted) - {'torch'} == set(pinned)
    for name, requirement in pinned.items():
        version = str(requirement.specifier).removeprefix('==')
        assert version in wanted[name].specifier, f'{name} {version} is not in {wanted[name]}'
    torch = re.search(r'^TORCH=(.+)$', (ROOT / 'tools/setup.sh').read_text(), re.M)
    assert torch and torch.group(1) in wanted['torch'].specifier


def test_messages_and_executables_are_known_to_cmake() -> None:
    for path in [*(ROOT / 'msg').glob('*.msg'), *(ROOT / 'srv').glob('*.srv'), *(p for p in (ROOT / 'scripts').iterdir() if p.is_file())]:
        assert re.search(rf'\b{path.parent.name}/{re.escape(path.name)}\b', CMAKE), f'{path.name} is missing in CMakeLists.txt'
    for path in (ROOT / 'scripts').iterdir():
        assert not path.is_file() or os.access(path, os.X_OK), f'{path} is not executable'


def test_path_lists_are_cleaned_of_an_earlier_overlay() -> None:
    function = re.search(r'^_dsac_without\(\) \{.*?^\}', (ROOT / 'tools/env.sh').read_text(), re.S | re.M)
    assert function
    done = run('bash', '-c', function.group(0) + '\n_dsac_without "/a/install/x:/b:/a/installed::/c/lib" /a/install "" /c')
    assert done.stdout == '/b:/a/installed'


def test_a_new_module_needs_no_build(tmp_path: Path) -> None:
    name = f'fresh_{os.getpid()}'
    module = ROOT / 'dsac_ros' / 'geometry' / f'{name}.py'
    module.write_text('VALUE = 42\n')
    try:
        done = run(sys.executable, '-c', f'from dsac_ros.geometry.{name} import VALUE; print(VALUE)', cwd=tmp_path)
    finally:
        module.unlink()
    assert done.stdout.strip() == '42', done.stderr


@pytest.mark.ros
class TestOverlay:
    """What colcon built and tools/env.sh activates."""

    def test_messages_and_python_share_one_name(self) -> None:
        from rclpy.serialization import deserialize_message, serialize_message

        from dsac_ros.msg import LocalizationStatus
        message = LocalizationStatus(state=LocalizationStatus.LOST, reasons=['few_inliers'])
        assert deserialize_message(serialize_message(message), LocalizationStatus) == message
        assert dsac_ros.__version__

    def test_installed_modules_are_the_sources(self) -> None:
        found = importlib.util.find_spec('dsac_ros.records')
        assert found and found.origin
        if os.path.islink(found.origin):  # colcon build without --symlink-install copies
            assert Path(found.origin).resolve() == ROOT / 'dsac_ros' / 'records.py'

    def test_the_index_knows_the_package(self) -> None:
        from ament_index_python.packages import get_package_prefix, get_package_share_directory
        share, prefix = Path(get_package_share_directory('dsac_ros')), Path(get_package_prefix('dsac_ros'))
        for folder in ('launch', 'config'):
            assert {p.name for p in (ROOT / folder).iterdir() if p.is_file()} <= {p.name for p in (share / folder).iterdir()}
        for script in (p for p in (ROOT / 'scripts').iterdir() if p.is_file()):
            assert os.access(prefix / 'lib' / 'dsac_ros' / script.name, os.X_OK)

    def test_the_node_executable_runs(self, tmp_path: Path) -> None:
        from ament_index_python.packages import get_package_prefix
        done = run(f'{get_package_prefix("dsac_ros")}/lib/dsac_ros/localizer', cwd=tmp_path)
        assert done.returncode == 1 and 'no map given' in done.stderr, done.stderr

    def test_tf2_msgs_is_there(self) -> None:
        from tf2_msgs.msg import TFMessage
        assert TFMessage.get_fields_and_field_types() == {'transforms': 'sequence<geometry_msgs/TransformStamped>'}

    def test_python_m_pytest_in_the_repository_finds_the_messages(self) -> None:
        chosen = 'test/test_packaging.py::TestOverlay::test_messages_and_python_share_one_name'
        done = run(sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', chosen)
        assert done.returncode == 0, done.stdout + done.stderr
