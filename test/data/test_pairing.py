"""Pairing by stamp: exact at once, near ones only when nothing better can come, nothing used twice, nothing out of order."""
from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dsac_ros.data.pairing import REORDER_NS, StampPairer

MS = 1_000_000


def pairer(**options: object) -> StampPairer:
    return StampPairer(['colour', 'depth'], 10 * MS, **options)


def test_an_exact_match_comes_with_the_second_message() -> None:
    for first, second in (('colour', 'depth'), ('depth', 'colour')):
        pairs = pairer()
        assert pairs.push(first, 5 * MS, first) == []
        assert pairs.push(second, 5 * MS, second) == [(5 * MS, {'colour': 'colour', 'depth': 'depth'})]
        assert not pairs.unpaired


def test_a_single_stream_needs_no_partner() -> None:
    assert StampPairer(['colour'], 0).push('colour', 7, 'x') == [(7, {'colour': 'x'})]


def test_a_near_match_waits_until_it_cannot_be_bettered() -> None:
    pairs = pairer()
    assert pairs.push('depth', 95 * MS, 'early') == []
    assert pairs.push('colour', 100 * MS, 'c') == [], 'a depth image at 100 ms may still come'
    assert pairs.push('depth', 102 * MS, 'better') == [], 'a colour image at 102 ms may still come'
    assert pairs.push('colour', 133 * MS, 'next') == [(100 * MS, {'colour': 'c', 'depth': 'better'})]
    assert pairs.unpaired == {'depth': 1}


def test_a_leader_leaves_the_item_that_fits_the_next_one_better() -> None:
    pairs = StampPairer(['colour', 'depth'], 40 * MS)
    assert pairs.push('colour', 1000 * MS, 'lost its depth') == []
    assert pairs.push('depth', 1033 * MS, 'd') == []
    assert pairs.push('colour', 1033 * MS, 'c') == [(1033 * MS, {'colour': 'c', 'depth': 'd'})]
    assert pairs.unpaired == {'colour': 1}


def test_unpaired_items_tell_how_far_off_they_were() -> None:
    pairs = pairer()
    for tick in range(20):
        assert pairs.push('colour', tick * 33 * MS, tick) == []
        assert pairs.push('depth', tick * 33 * MS + 15 * MS, tick) == []
    assert pairs.unpaired['colour'] >= 18
    assert pairs.largest_gap_ns['colour'] == 15 * MS


def test_a_silent_follower_does_not_fill_the_memory() -> None:
    pairs = pairer(queue=5)
    for tick in range(100):
        assert pairs.push('colour', tick * MS, tick) == []
    assert pairs.unpaired['colour'] == 95
    assert sum(map(len, pairs._items.values())) == 5


def test_a_silent_leader_does_not_fill_the_memory() -> None:
    pairs = pairer(queue=5)
    for tick in range(100):
        pairs.push('depth', tick * MS, tick)
    assert sum(map(len, pairs._items.values())) == 5


def test_three_streams_wait_for_the_slowest() -> None:
    pairs = StampPairer(['colour', 'depth', 'info'], 0)
    assert pairs.push('colour', 1, 'c') == [] and pairs.push('info', 1, 'i') == []
    assert pairs.push('depth', 1, 'd') == [(1, {'colour': 'c', 'depth': 'd', 'info': 'i'})]


def test_a_loop_starts_anew_and_is_counted() -> None:
    pairs, sets = pairer(), []
    for _ in range(3):
        for tick in range(10):
            stamp = 1000 * MS + tick * 33 * MS
            sets += pairs.push('colour', stamp, tick)
            sets += pairs.push('depth', stamp, tick)
    assert pairs.jumps >= 2
    # Either stream notices the jump by itself, so a set may be lost at each seam, but no more.
    assert len(sets) >= 28
    assert all(found['colour'] == found['depth'] for _, found in sets)


def test_a_late_message_is_not_a_jump() -> None:
    pairs = pairer()
    pairs.push('colour', 1000 * MS, 'a')
    pairs.push('depth', 1000 * MS, 'a')
    assert pairs.push('colour', 1000 * MS - REORDER_NS, 'late') == []
    assert pairs.jumps == 0 and pairs.late == {'colour': 1} and not pairs.unpaired
    pairs.push('depth', 1050 * MS, 'b')
    assert pairs.push('depth', 1050 * MS, 'again') == [] and pairs.late['depth'] == 1


def test_partial_sets_keep_frames_without_depth_in_order() -> None:
    pairs, sets = pairer(partial=True), []
    for tick in range(10):
        sets += pairs.push('colour', tick * 33 * MS, tick)
        if tick not in (3, 4, 9):
            sets += pairs.push('depth', tick * 33 * MS, tick)
    sets += pairs.flush()
    assert [found['colour'] for _, found in sets] == list(range(10))
    assert [found['colour'] for _, found in sets if 'depth' not in found] == [3, 4, 9]


streams = st.lists(st.integers(1, 400), min_size=0, max_size=25, unique=True)


@settings(max_examples=60, deadline=None)
@given(colour=streams, depth=streams, lag=st.integers(0, 60), slop=st.integers(0, 30))
def test_sets_are_in_order_within_slop_and_use_nothing_twice(colour: list[int], depth: list[int], lag: int, slop: int) -> None:
    pairs, sets = StampPairer(['colour', 'depth'], slop, queue=100, partial=True), []
    arrivals = sorted([(stamp, 'colour', stamp) for stamp in colour] + [(stamp + lag, 'depth', stamp) for stamp in depth])
    for _, stream, stamp in arrivals:
        sets += pairs.push(stream, stamp, stamp)
    sets += pairs.flush()
    stamps = [stamp for stamp, _ in sets]
    assert stamps == sorted(colour), 'every leader once, in order'
    partners = [found['depth'] for _, found in sets if 'depth' in found]
    assert partners == sorted(set(partners)), 'none twice, none backwards'
    for stamp, found in sets:
        if 'depth' in found:
            assert abs(found['depth'] - stamp) <= slop
        if stamp in depth:
            assert found.get('depth') == stamp, 'an exact match always wins'
    # Nothing that would have fitted was left: a leader goes without only if each item near it fits another leader better, or was passed.
    for stamp, found in sets:
        if 'depth' not in found:
            free = [other for other in depth if abs(other - stamp) <= slop and other not in partners]
            for other in free:
                assert any(abs(other - leader) < abs(other - stamp) for leader in colour) or any(p > other for p in partners)


@settings(max_examples=40, deadline=None)
@given(colour=streams, depth=streams, slop=st.integers(0, 30))
def test_counts_add_up(colour: list[int], depth: list[int], slop: int) -> None:
    pairs, sets = StampPairer(['colour', 'depth'], slop, queue=5), []
    for stamp, stream in sorted([(s, 'colour') for s in colour] + [(s, 'depth') for s in depth]):
        sets += pairs.push(stream, stamp, stamp)
    sets += pairs.flush()
    assert len(sets) + pairs.unpaired['colour'] == len(colour)
    assert len(sets) + pairs.unpaired['depth'] == len(depth)
