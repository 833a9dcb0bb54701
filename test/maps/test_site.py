"""What a site reads, and when; where its sub-maps are."""
from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from small import prototypes, saved

from dsac_ros.errors import MapError
from dsac_ros.maps import bundle as bundles
from dsac_ros.maps.bundle import load_map
from dsac_ros.maps.editing import add_experts, merge_sites, problems
from dsac_ros.maps.manifest import placed, read_manifest
from dsac_ros.maps.site import SubMaps, open_site, site_of
from dsac_ros.networks.gating import Prototypes
from dsac_ros.viewing.shapes import map_view


@pytest.fixture
def path(tmp_path: Path) -> Path:
    for seed, name in enumerate('abc'):
        saved(tmp_path / name, seed, name=name, prototypes=prototypes(seed))
    merge_sites([tmp_path / name for name in 'abc'], tmp_path / 'site')
    return tmp_path / 'site'


def test_opening_reads_the_manifest_and_gating_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = bundles.read_plain
    monkeypatch.setattr(bundles, 'read_plain', lambda file, most: read.append(str(file.relative_to(path))) or original(file, most))
    site = open_site(path)
    assert read == [f'gating/{name}.safetensors' for name in 'abc'] and [entry.name for entry in site.entries] == list('abc')
    torch.testing.assert_close(site.prototypes[1].descriptors_MD, prototypes(1).descriptors_MD, rtol=2 ** -10, atol=1e-4)
    assert site.read(2).entry.name == 'c' and read[3:] == ['experts/c.safetensors']


def test_what_gating_cannot_use_is_refused(path: Path, tmp_path: Path) -> None:
    before = read_manifest(path)
    saved(tmp_path / 'short', name='short', prototypes=Prototypes(torch.ones(2, 7) / 7 ** 0.5))
    for use in (open_site, lambda short: add_experts(path, short)):
        with pytest.raises(MapError, match='gating/short.safetensors: expected descriptors of 768 numbers, found 7'):
            use(tmp_path / 'short')
    assert read_manifest(path) == before and 'found 7' in problems(tmp_path / 'short')[0]


def test_distances_are_to_the_boxes_in_the_site(path: Path) -> None:
    """Against the nearest of many points of a turned box."""
    bundle, place = load_map(path, 'a'), np.eye(4)
    place[:3, :3], place[:3, 3] = Rotation.random(random_state=1).as_matrix(), [3.0, 1.0, -4.0]
    site = site_of(replace(bundle, entry=placed(bundle.entry, place)))
    rng = np.random.default_rng(0)
    box = np.array(bundle.entry.centre) + np.array(bundle.entry.extent) * rng.uniform(-0.5, 0.5, (400_000, 3))
    inside = box @ place[:3, :3].T + place[:3, 3]
    for point in rng.normal(scale=8, size=(5, 3)):
        assert site.distances(point)[0] == pytest.approx(np.linalg.norm(inside - point, axis=1).min(), abs=0.15)
    assert (site.distances(inside[0]) == 0).all()


class Maker:
    def __init__(self) -> None:
        self.made: list[int] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, index: int) -> str:
        self.go.wait(10)
        self.made.append(index)
        if index == 13:
            raise MapError('thirteen')
        return str(index)


def test_the_least_recently_used_is_made_again() -> None:
    make = Maker()
    maps = SubMaps(make, 2)
    for index in (1, 2, 1, 3, 1, 2):
        assert maps.get(index) == str(index)
    assert make.made == [1, 2, 3, 2]  # 2 was the oldest when 3 came, 1 never
    assert maps.ready(1) and maps.ready(2) and not maps.ready(3)


def test_preloading_is_done_beside_and_is_not_waited_for() -> None:
    make = Maker()
    maps = SubMaps(make, 6)
    make.go.clear()
    maps.preload([1, 2, 3, 4, 5])  # half of six
    assert not maps.ready(1) and make.made == []
    make.go.set()
    assert maps.get(3) == '3' and maps.get(1) == '1' and maps.get(2) == '2'
    assert sorted(make.made) == [1, 2, 3] and not maps.ready(4)
    begin = time.monotonic()
    maps.preload([7])
    while not maps.ready(7) and time.monotonic() - begin < 5:
        time.sleep(0.01)
    assert maps.ready(7) and maps.get(7) == '7' and make.made.count(7) == 1


def test_what_fails_is_tried_again() -> None:
    make = Maker()
    maps = SubMaps(make, 4)
    for _ in range(2):
        with pytest.raises(MapError, match='thirteen'):
            maps.get(13)
    maps.preload([13])
    with pytest.raises(MapError, match='thirteen'):
        maps.get(13)
    assert make.made == [13, 13, 13] and maps.get(1) == '1'


def test_what_is_drawn_of_a_site_is_where_its_sub_maps_are(path: Path) -> None:
    """The landmarks of a turned sub-map among the points, and its box around its centre."""
    bundle, place = load_map(path, 'a'), np.eye(4)
    place[:3, :3], place[:3, 3] = Rotation.from_rotvec([0.3, -0.2, 1.0]).as_matrix(), [3.0, 1.0, -4.0]
    view = map_view(site_of(replace(bundle, entry=placed(bundle.entry, place))))
    points = bundle.landmarks.points_L3.numpy()
    np.testing.assert_allclose(view.points_N3, [place[:3, :3] @ p + place[:3, 3] for p in points], atol=1e-5)
    (box,) = view.experts
    np.testing.assert_allclose(box.map_from_box @ [0, 0, 0, 1], place @ [*bundle.entry.centre, 1])
    np.testing.assert_array_equal(box.size, bundle.entry.extent)
    assert len(map_view(open_site(path)).points_N3) == 3 * len(points)
