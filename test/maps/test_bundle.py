"""The map bundle: what is saved comes back, and every damage is one MapError that names the file."""
from __future__ import annotations

import hashlib
import os
import resource
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from small import FACTORS, expert, landmarks, prototypes, saved

from dsac_ros.errors import MapError
from dsac_ros.maps import bundle as module
from dsac_ros.maps.bundle import load_map, save_map
from dsac_ros.networks.encoder import CHANNELS, shared_encoder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    saved(tmp_path / 'maps' / 'kitchen.dsacmap')
    return tmp_path / 'maps' / 'kitchen.dsacmap'


def manifest(path: Path) -> dict[str, Any]:
    return yaml.safe_load((path / 'manifest.yaml').read_text())


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = manifest(path)
    change(values)
    (path / 'manifest.yaml').write_text(yaml.safe_dump(values))


def replace_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change tensors and make the hash fit, as a stranger could."""
    file = path / 'experts' / 'room.safetensors'
    tensors = load(file.read_bytes())
    change(tensors)
    data = save(tensors)
    file.write_bytes(data)
    rewrite(path, lambda m: m['experts'][0].update(sha256=hashlib.sha256(data).hexdigest()))


def refused(path: Path, *words: str) -> str:
    with pytest.raises(MapError) as caught:
        load_map(path)
    message = str(caught.value)
    assert str(path) in message and '\n' not in message and len(message) < 900
    for word in words:
        assert word in message, message
    return message


def test_round_trip(path: Path) -> None:
    loaded = load_map(path)
    assert (loaded.frame_id, loaded.covariance_factors, loaded.training) == ('map', FACTORS, {'steps': 7, 'held_out': {}})
    assert (loaded.entry.name, loaded.entry.centre, loaded.entry.extent) == ('room', [1.0, -2.0, 0.5], [4.0, 5.0, 2.5])
    for name, value in expert().state_dict().items():
        ours = loaded.expert.state_dict()[name]
        # weights in float16 (11 bits), metres in float32, exactly
        torch.testing.assert_close(ours, value, rtol=0 if name in dict(expert().named_buffers()) else 2 ** -11, atol=1e-7)
    assert not loaded.expert.training and not any(p.requires_grad for p in loaded.expert.parameters())
    features = torch.randn(20, CHANNELS)
    torch.testing.assert_close(loaded.expert(features)[0], expert()(features)[0], atol=0.02, rtol=0)
    torch.testing.assert_close(loaded.prototypes.descriptors_MD, prototypes().descriptors_MD, rtol=2 ** -10, atol=1e-4)  # float16
    assert sorted(p.name for p in path.parent.iterdir()) == ['kitchen.dsacmap']  # no temporary folder is left
    assert load_map(str(path)).frame_id == 'map'


def test_a_last_stage_of_its_own_round_trip(tmp_path: Path) -> None:
    made, path = expert(), tmp_path / 'own.dsacmap'
    made.last_stage = shared_encoder('cpu').own_last_stage()
    made.last_stage.project.bias.data.normal_()
    saved(path, expert=made)
    ours = load_map(path).expert
    assert not any(p.requires_grad for p in ours.parameters())
    for name, value in made.last_stage.state_dict().items():
        torch.testing.assert_close(ours.last_stage.state_dict()[name], value, rtol=2 ** -11, atol=1e-7)
    replace_tensors(path, lambda t: t.update({'last_stage.project.weight': torch.zeros(3, 3)}))
    refused(path, 'last_stage.project.weight', '(3, 3)')
    saved(path, expert=made, overwrite=True)
    replace_tensors(path, lambda t: t.pop('last_stage.depthwise.bias'))
    refused(path, 'last_stage.depthwise.bias', 'None')


def test_landmarks_round_trip(path: Path, tmp_path: Path) -> None:
    ours, made = load_map(path).landmarks, landmarks()
    assert torch.equal(ours.points_L3, made.points_L3)
    torch.testing.assert_close(ours.views_L3, made.views_L3, rtol=2 ** -11, atol=1e-6)  # float16
    torch.testing.assert_close(ours.descriptors_LC, made.descriptors_LC, rtol=0, atol=0.006)  # 1/127, half of it, normalised again
    assert torch.equal(ours.basis_DC, made.basis_DC)
    assert torch.equal(ours.cameras_F34, made.cameras_F34) and ours.cameras_F34.shape == (5, 3, 4)
    assert ours.common_shift == made.common_shift == ours.growth == made.growth == 0.0
    shifted = tmp_path / 'shifted.dsacmap'
    saved(shifted, landmarks=replace(made, common_shift=0.0015, growth=2.5))
    assert load_map(shifted).landmarks.common_shift == pytest.approx(0.0015) and load_map(shifted).landmarks.growth == 2.5
    for name in ('growth', 'cameras'):  # maps of November 2026 have none: their shift holds wherever a view is
        replace_tensors(shifted, lambda t, name=name: t.pop(f'landmarks.{name}'))
    old = load_map(shifted).landmarks
    assert old.common_shift == pytest.approx(0.0015) and old.growth == 0.0 and old.cameras_F34.shape == (0, 3, 4)
    replace_tensors(shifted, lambda t: t.pop('landmarks.common_shift'))  # and older ones none at all
    assert load_map(shifted).landmarks.common_shift == 0.0
    saved(tmp_path / 'none.dsacmap', landmarks=None)
    assert load_map(tmp_path / 'none.dsacmap').landmarks is None


def test_saving_twice_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    saved(tmp_path / 'again.dsacmap')
    for file in ('manifest.yaml', 'experts/room.safetensors', 'experts/room.yaml', 'gating/room.safetensors'):
        assert (tmp_path / 'again.dsacmap' / file).read_bytes() == (path / file).read_bytes()


def test_no_folder_and_no_manifest(tmp_path: Path, path: Path) -> None:
    refused(tmp_path / 'absent.dsacmap', 'manifest.yaml')
    (path / 'manifest.yaml').unlink()
    refused(path, 'manifest.yaml is missing')
    (path / 'manifest.yaml').mkdir()
    refused(path, 'manifest.yaml')


def test_missing_expert_file(path: Path) -> None:
    (path / 'experts' / 'room.safetensors').unlink()
    refused(path, 'experts/room.safetensors', 'No such file')


@pytest.mark.parametrize('keep', [0, 7, 100, -1])
def test_truncated_expert_file(path: Path, keep: int) -> None:
    file = path / 'experts' / 'room.safetensors'
    data = file.read_bytes()[:keep]
    file.write_bytes(data)
    refused(path, 'experts/room.safetensors', 'sha256')
    # and with a hash that fits the damage
    rewrite(path, lambda m: m['experts'][0].update(sha256=hashlib.sha256(data).hexdigest()))
    refused(path, 'experts/room.safetensors', 'safetensors file')


def test_one_flipped_bit(path: Path) -> None:
    file = path / 'experts' / 'room.safetensors'
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    refused(path, 'experts/room.safetensors', 'sha256', 'copy the map again')


@pytest.mark.parametrize(('change', 'words'), [
    (lambda t: t.update({'last.bias': torch.zeros(9)}), 'last.bias'),
    (lambda t: t.update({'first.weight': torch.zeros(16, CHANNELS + 1)}), 'first.weight'),
    (lambda t: t.update({'feature_mean': torch.zeros(CHANNELS - 8)}), 'channels'),
    (lambda t: t.update({'feature_mean': torch.zeros(())}), 'missing'),
    (lambda t: t.pop('first.bias'), 'missing'),
    (lambda t: t.pop('residual.1.2.weight'), 'residual.1.2.weight'),
    (lambda t: t.update({'extra': torch.zeros(3)}), 'extra'),
    (lambda t: t['first.weight'].__setitem__((3, 5), torch.nan), 'finite'),
    (lambda t: t['centres'].__setitem__((0, 0), torch.inf), 'finite'),
    (lambda t: t.update({'offset_scale': torch.ones((), dtype=torch.int64)}), 'float'),
    (lambda t: t.clear(), 'missing'),
    (lambda t: t.pop('landmarks.views'), 'landmarks'),
    (lambda t: t.update({'landmarks.colours': torch.zeros(30, 3)}), 'landmarks'),
    (lambda t: t.update({'landmarks.points': torch.zeros(29, 3)}), 'landmarks.'),
    (lambda t: t.update({'landmarks.points': torch.zeros(())}), 'landmarks'),
    (lambda t: t.update({'landmarks.points': torch.zeros(30, 3).double()}), 'landmarks.points'),
    (lambda t: t['landmarks.points'].__setitem__((2, 1), torch.nan), 'landmarks.points'),
    (lambda t: t['landmarks.views'].__setitem__((2, 1), torch.inf), 'landmarks.views'),
    (lambda t: t['landmarks.basis'].__setitem__((2, 1), torch.nan), 'landmarks.basis'),
    (lambda t: t.update({'landmarks.basis': torch.zeros(64, 64)}), 'landmarks.basis'),
    (lambda t: t.update({'landmarks.common_shift': torch.zeros(3)}), 'landmarks.common_shift'),
    (lambda t: t.update({'landmarks.common_shift': torch.tensor(torch.nan)}), 'landmarks.common_shift'),
    (lambda t: t.update({'landmarks.growth': torch.tensor(-0.5)}), 'landmarks.growth'),
    (lambda t: t.update({'landmarks.growth': torch.tensor(torch.inf)}), 'landmarks.growth'),
    (lambda t: t.update({'landmarks.cameras': torch.zeros(())}), 'landmarks.cameras'),
    (lambda t: t.update({'landmarks.cameras': torch.zeros(5, 4, 4)}), 'landmarks.cameras'),
    (lambda t: t.update({'landmarks.cameras': torch.zeros(100_001, 3, 4)}), 'landmarks.cameras'),
    (lambda t: t.update({'landmarks.cameras': torch.full((5, 3, 4), torch.nan)}), 'landmarks.cameras'),
    (lambda t: t.update({'landmarks.descriptors': torch.zeros(30, 64, dtype=torch.uint8)}), 'landmarks.descriptors'),
])
def test_wrong_tensors(path: Path, change: Callable, words: str) -> None:
    replace_tensors(path, change)
    refused(path, 'experts/room.safetensors', words)


@pytest.mark.parametrize(('change', 'words'), [
    (lambda m: m.update(format=3), 'format 3, expected 2'),
    (lambda m: m.update(format=True), 'format True'),
    (lambda m: m.pop('format'), 'format None'),
    (lambda m: m['encoder'].update(id='resnet'), 'resnet'),
    (lambda m: m['encoder'].update(sha256='0' * 64), 'encoder'),
    (lambda m: m.update(encoder='x'), 'encoder'),
    (lambda m: m.update(frame_id=''), 'frame_id'),
    (lambda m: m.update(frame_id=5), 'frame_id'),
    (lambda m: m.update(frame_id='map\x1b[2J'), 'frame_id'),
    (lambda m: m['experts'][0].update(name=''), 'expert name'),
    (lambda m: m['experts'][0].update(name='a\n\x1b[2J'), 'expert name'),
    (lambda m: m.update(experts=[]), 'experts'),
    (lambda m: m.update(experts=m['experts'] * 2), 'same name'),
    (lambda m: m['experts'].append({**m['experts'][0], 'name': 'other'}), 'same file'),
    (lambda m: m.update(experts=m['experts'] * 2000), 'experts'),
    (lambda m: m['experts'][0].update(site_from_map=[[1.0, 0.0, 0.0, 0.0]] * 3), 'site_from_map'),
    (lambda m: m['experts'][0].update(site_from_map=[[-1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]), 'site_from_map'),
    (lambda m: m['experts'][0].update(site_from_map=[[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]]), 'site_from_map'),
    (lambda m: m['experts'][0].update(site_from_map=[[float('nan')] * 4] * 3), 'site_from_map'),
    (lambda m: m['experts'][0].update(site_from_map=[1.0, 2.0]), 'site_from_map'),
    (lambda m: m['experts'][0].update(gating_sha256=7), 'gating_sha256'),
    (lambda m: m['experts'][0].pop('centre'), 'centre'),
    (lambda m: m['experts'][0].update(more=1), 'extent'),
    (lambda m: m['experts'][0].update(centre=[1.0, 2.0]), 'centre'),
    (lambda m: m['experts'][0].update(extent=[1.0, 2.0, float('nan')]), 'extent'),
    (lambda m: m['experts'][0].update(extent=[1.0, 2.0, 'x']), 'extent'),
    (lambda m: m['experts'][0].update(sha256=3), 'sha256'),
    (lambda m: m['experts'][0].update(covariance_factors={**FACTORS, 'rgb': -1.0}), 'covariance_factors'),
    (lambda m: m['experts'][0].update(covariance_factors={**FACTORS, 'rgb': float('nan')}), 'covariance_factors'),
    (lambda m: m['experts'][0].update(covariance_factors={'rgb': 1.0}), 'covariance_factors'),
    (lambda m: m['experts'][0].update(covariance_factors={}), 'covariance_factors'),
    (lambda m: m['experts'][0].pop('covariance_factors'), 'covariance_factors'),
])
def test_wrong_manifest(path: Path, change: Callable, words: str) -> None:
    rewrite(path, change)
    refused(path, 'manifest.yaml', words)


@pytest.mark.parametrize(('change', 'words'), [
    (lambda t: t.clear(), 'prototypes'),
    (lambda t: t.update({'prototypes': torch.zeros(())}), 'prototypes'),
    (lambda t: t.update({'prototypes': torch.full((2, 8), torch.nan)}), 'finite'),
    (lambda t: t.update({'more': torch.zeros(3)}), 'more'),
    (lambda t: t.update({'prototypes': torch.ones(3, 10)}), 'descriptors of 768 numbers, found 10'),
])
def test_wrong_prototypes(path: Path, change: Callable, words: str) -> None:
    file = path / 'gating' / 'room.safetensors'
    tensors = load(file.read_bytes())
    change(tensors)
    file.write_bytes(save(tensors))
    refused(path, 'gating/room.safetensors', 'sha256')
    rewrite(path, lambda m: m['experts'][0].update(gating_sha256=hashlib.sha256(file.read_bytes()).hexdigest()))
    refused(path, 'gating/room.safetensors', words)
    file.unlink()
    refused(path, 'gating/room.safetensors', 'No such file')


def as_format_1(path: Path) -> None:
    """What the version before wrote."""
    values = manifest(path)
    entry = values['experts'][0]
    factors, training = entry.pop('covariance_factors'), yaml.safe_load((path / 'experts' / 'room.yaml').read_text())
    entry.pop('gating_sha256')
    text = yaml.safe_dump({**values, 'format': 1, 'covariance_factors': factors, 'training': training})
    (path / 'manifest.yaml').write_text(text)
    (path / 'experts' / 'room.yaml').unlink()
    shutil.rmtree(path / 'gating')


def test_maps_of_format_1_still_load(path: Path) -> None:
    new = load_map(path)
    as_format_1(path)
    old = load_map(path)
    assert (old.frame_id, old.covariance_factors, old.training) == (new.frame_id, new.covariance_factors, new.training)
    assert old.prototypes is None and replace(old.entry, gating_sha256=new.entry.gating_sha256) == new.entry
    torch.testing.assert_close(old.expert.state_dict(), new.expert.state_dict())
    rewrite(path, lambda m: m.update(covariance_factors={'rgb': 1.0}))
    refused(path, 'covariance_factors')


def test_one_of_several_experts_has_to_be_named(path: Path) -> None:
    (path / 'experts' / 'other.safetensors').write_bytes((path / 'experts' / 'room.safetensors').read_bytes())
    rewrite(path, lambda m: m['experts'].append({**m['experts'][0], 'name': 'other', 'file': 'experts/other.safetensors',
                                                 'gating_sha256': '', 'centre': [9.0, 9.0, 9.0]}))
    refused(path, 'a map of 2 experts')
    assert load_map(path, 'other').entry.centre == [9.0, 9.0, 9.0] and load_map(path, 'room').entry.centre == [1.0, -2.0, 0.5]
    with pytest.raises(MapError, match="'attic'; there are room, other"):
        load_map(path, 'attic')


@pytest.mark.parametrize('name', ['', '../x', 'a/b', '.hidden', 'x' * 200, 'a\nb'])
def test_names_that_are_no_file_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(MapError, match='expert name'):
        saved(tmp_path / 'm.dsacmap', name=name)
    assert not (tmp_path / 'm.dsacmap').exists()


@pytest.mark.parametrize('file', ['../../secret.safetensors', 'experts/../../secret.safetensors', '/etc/passwd', '//etc/passwd',
                                  'experts/..', 'room.safetensors', 'experts', '', '.', 'experts/a/b',
                                  'experts/\0', 'experts/' + 'x' * 300, '\ud800/x'])
def test_path_traversal_is_refused(path: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (path.parent / 'secret.safetensors').write_bytes((path / 'experts' / 'room.safetensors').read_bytes())
    rewrite(path, lambda m: m['experts'][0].update(file=file))
    read: list[bytes] = []
    original = module.read_plain
    monkeypatch.setattr(module, 'read_plain', lambda *arguments: read.append(original(*arguments)) or read[-1])
    refused(path)
    assert not read


@pytest.mark.parametrize('text', [
    '!!python/object/apply:os.system ["touch {0}"]',
    'training: !!python/object/apply:pathlib.Path.touch [!!python/object:pathlib.Path ["{0}"]]',
    'frame_id: !!python/name:os.system', '!!python/module:antigravity'])
def test_yaml_tags_cannot_run_code(path: Path, tmp_path: Path, text: str) -> None:
    (path / 'manifest.yaml').write_text(text.replace('{0}', str(tmp_path / 'ran')))
    refused(path, 'manifest.yaml')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('data', [b'', b'- 1', b'5', b'\xff\xfe\x00', b'a: [', b'a: 2020-13-45', b'format: 0b', b'x: \x00',
                                  b'format: 0x' + b'f' * 5000, b'? [1, 2]\n: 3', b'[' * 3000], ids=lambda data: repr(data[:15]))
def test_manifest_that_is_no_mapping_or_no_yaml(path: Path, data: bytes) -> None:
    (path / 'manifest.yaml').write_bytes(data)
    refused(path, 'manifest.yaml')


def test_huge_files_are_refused_before_they_are_read(path: Path) -> None:
    os.truncate(path / 'experts' / 'room.safetensors', 1 << 40)
    refused(path, 'experts/room.safetensors', 'at most')
    os.truncate(path / 'manifest.yaml', 1 << 40)
    refused(path, 'manifest.yaml', 'at most')


@pytest.mark.parametrize('name', ['manifest.yaml', 'experts/room.safetensors', 'experts/room.yaml', 'gating/room.safetensors'])
@pytest.mark.parametrize('kind', ['device', 'link', 'pipe'])
def test_what_is_no_plain_file_is_not_read(path: Path, name: str, kind: str) -> None:
    """A device or a pipe never ends, a link leads anywhere."""
    copy = path.parent / 'copy'
    (path / name).rename(copy)
    os.mkfifo(path / name) if kind == 'pipe' else (path / name).symlink_to(copy if kind == 'link' else '/dev/zero')
    refused(path, name, 'expected a plain file')


def test_merge_keys_do_not_explode(path: Path) -> None:
    """Each line would make ten times as many entries as the one before, while the file is parsed."""
    lines = ['a0: &a0 {x: 1}'] + [f'a{i}: &a{i} {{<<: [{", ".join([f"*a{i - 1}"] * 10)}]}}' for i in range(1, 9)]
    for merge in ('<<', '!!merge x'):
        text = '\n'.join([*lines, yaml.safe_dump(manifest(path))]) if merge == '<<' else f'a: &a {{x: 1}}\n? {merge}\n: *a\n'
        broken = path.parent / f'merged{len(merge)}.dsacmap'
        broken.mkdir()
        (broken / 'manifest.yaml').write_text(text)
        begin = time.process_time()
        refused(broken, 'manifest.yaml', 'merge')
        assert time.process_time() - begin < 2.0


def test_sizes_that_are_only_claimed_take_no_memory(path: Path) -> None:
    def claim(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({'first.bias': torch.zeros(4096), 'centres': torch.zeros(4096, 0)})

    replace_tensors(path, claim)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, 'experts/room.safetensors', 'expected shape')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # kB


def test_a_place_with_too_long_a_name(tmp_path: Path) -> None:
    refused(tmp_path / ('x' * 300), 'too long')
    with pytest.raises(MapError, match='cannot be written: File name too long'):
        saved(tmp_path / ('x' * 300))


def test_nested_aliases_do_not_explode(path: Path) -> None:
    """Ten to the ninth elements in 300 bytes of YAML: naming what was found must not write them out."""
    lines = ['a0: &a0 [x, x, x, x, x, x, x, x, x, x]'] + [f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 10)}]' for i in range(1, 9)]
    for key in ('encoder', 'frame_id', 'format', 'experts'):
        values = manifest(path)
        values.pop(key)
        text = '\n'.join([*lines, yaml.safe_dump(values), f'{key}: *a8'])
        broken = path.parent / f'{key}.dsacmap'
        broken.mkdir()
        (broken / 'manifest.yaml').write_text(text)
        begin = time.process_time()
        refused(broken, 'manifest.yaml')
        assert time.process_time() - begin < 2.0


SCALARS = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
           | st.sampled_from(['experts/room.safetensors', 'map']))
VALUES = st.recursive(SCALARS, lambda inner: (st.lists(inner, max_size=3)
                                              | st.dictionaries(SCALARS.filter(lambda v: v == v), inner, max_size=3)), max_leaves=6)


def spots(values: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    out = [way] if way else []
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return out + [spot for key, value in items for spot in spots(value, (*way, key))]


@pytest.fixture(scope='module')
def victim(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp('victim') / 'v.dsacmap'
    saved(path)
    return path, (path / 'manifest.yaml').read_text()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_changed_value_loads_or_is_a_map_error(victim: tuple[Path, str], data: st.DataObject) -> None:
    path, text = victim
    values = yaml.safe_load(text)
    for _ in range(data.draw(st.integers(1, 2))):
        way = data.draw(st.sampled_from(spots(values)))
        parent = values
        for key in way[:-1]:
            parent = parent[key]
        parent[way[-1]] = data.draw(VALUES)
    (path / 'manifest.yaml').write_text(yaml.safe_dump(values, allow_unicode=True), encoding='utf-8', errors='surrogatepass')
    loads_or_map_error(path)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(at=st.floats(0, 1), cut=st.integers(0, 9), insert=st.binary(max_size=6) | st.text(':-[]{}&*!|>\'"#%@ \n\t0123456789eE.', max_size=6))
def test_any_changed_text_loads_or_is_a_map_error(victim: tuple[Path, str], at: float, cut: int, insert: bytes | str) -> None:
    path, text = victim
    raw = text.encode()
    start = int(at * len(raw))
    (path / 'manifest.yaml').write_bytes(raw[:start] + (insert.encode() if isinstance(insert, str) else insert) + raw[start + cut:])
    loads_or_map_error(path)


def loads_or_map_error(path: Path) -> None:
    try:
        loaded = load_map(path)
    except MapError as error:
        assert str(path) in str(error)
    else:
        assert isinstance(loaded.frame_id, str) and set(loaded.covariance_factors) == set(FACTORS)


def test_an_existing_map_is_kept_unless_told_otherwise(path: Path) -> None:
    before = (path / 'experts' / 'room.safetensors').read_bytes()
    with pytest.raises(MapError, match='exists already'):
        saved(path, 1)
    assert (path / 'experts' / 'room.safetensors').read_bytes() == before
    saved(path, 1, overwrite=True)
    torch.testing.assert_close(load_map(path).expert.centres, expert(1).centres)
    assert sorted(p.name for p in path.parent.iterdir()) == ['kitchen.dsacmap']


def test_overwriting_never_removes_what_is_no_map(tmp_path: Path) -> None:
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis' / 'chapter1.tex').write_text('precious')
    (tmp_path / 'file').write_text('precious')
    for name in ('thesis', 'file'):
        with pytest.raises(MapError, match=f'{name}.*is no map'):
            saved(tmp_path / name, overwrite=True)
    assert (tmp_path / 'thesis' / 'chapter1.tex').read_text() == (tmp_path / 'file').read_text() == 'precious'


@pytest.mark.parametrize('fails', ['os.rename', 'os.fsync'])
def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(module.os, fails.split('.')[1], full)
    with pytest.raises(MapError, match=r'new\.dsacmap: cannot be written: No space left'):
        saved(tmp_path / 'new.dsacmap')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('fail_at', [1, 2])
def test_a_failed_overwrite_keeps_the_old_map(path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int) -> None:
    calls, rename = [], os.rename

    def failing(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == fail_at:
            raise OSError(5, 'Input/output error')
        rename(*arguments)

    monkeypatch.setattr(module.os, 'rename', failing)
    with pytest.raises(MapError, match='Input/output error'):
        saved(path, 1, overwrite=True)
    monkeypatch.undo()
    torch.testing.assert_close(load_map(path).expert.centres, expert(0).centres)
    assert sorted(p.name for p in path.parent.iterdir()) == ['kitchen.dsacmap']


def test_overwriting_a_link_leaves_the_map_that_it_leads_to(path: Path) -> None:
    link = path.parent / 'current'
    link.symlink_to(path.name)
    saved(link, 1, overwrite=True)
    for place, seed in ((link, 1), (path, 0)):
        torch.testing.assert_close(load_map(place).expert.centres, expert(seed).centres)
    assert not link.is_symlink() and sorted(p.name for p in path.parent.iterdir()) == ['current', 'kitchen.dsacmap']


def test_a_place_that_cannot_be_written(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(MapError, match=r'm\.dsacmap: cannot be written'):
        saved(tmp_path / 'file' / 'm.dsacmap')
    monkeypatch.chdir(path)
    with pytest.raises(MapError, match=r'^\.: cannot be written: .* the working directory'):
        module.check_place(Path('.'), overwrite=True)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(MapError, match='Permission denied'):
        saved(tmp_path / 'm.dsacmap')


def test_weights_beyond_float16_are_kept(tmp_path: Path) -> None:
    large = expert()
    large.last.weight.data[0, 0] = 1e5
    save_map(tmp_path / 'm.dsacmap', 'map', 'room', large, None, FACTORS, [0.0] * 3, [1.0] * 3, {})
    loaded = load_map(tmp_path / 'm.dsacmap').expert
    assert loaded.last.weight[0, 0] == 1e5
    torch.testing.assert_close(loaded.state_dict(), large.state_dict(), rtol=1e-3, atol=1e-4)
