"""Options: every default passes its own check, and whatever is wrong is one ConfigError that says what was expected."""
from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from dsac_ros import config
from dsac_ros.config import (
    LOCALIZER_GROUPS,
    PRECISION,
    EstimatorOptions,
    FinetunerOptions,
    FinetuningOptions,
    GatingOptions,
    IntegrityOptions,
    MappingOptions,
    NodeOptions,
    Options,
    SourceOptions,
    StateOptions,
    TrackingOptions,
    build_groups,
    from_dict,
    parse_settings,
)
from dsac_ros.errors import ConfigError
from dsac_ros.evaluation.options import EvaluationOptions

GROUPS = [NodeOptions, EstimatorOptions, GatingOptions, TrackingOptions, IntegrityOptions, StateOptions, MappingOptions,
          FinetuningOptions, SourceOptions, FinetunerOptions, EvaluationOptions]
EVERY = [(group, f) for group in GROUPS for f in fields(group)]
NAMES = [f'{group.__name__}.{f.name}' for group, f in EVERY]


def test_no_group_is_left_out() -> None:
    assert {g for g in vars(config).values() if isinstance(g, type) and issubclass(g, Options) and g is not Options} <= set(GROUPS)


@pytest.mark.parametrize(('group', 'f'), EVERY, ids=NAMES)
def test_every_option_is_documented_and_its_default_is_allowed(group: type, f: Any) -> None:
    limits = f.metadata
    assert len(limits['help']) >= 8 and type(f.default) in (bool, int, float, str, tuple)
    group(**{f.name: f.default})
    if type(f.default) in (int, float):
        assert limits['low'] is not None  # the upper one is left open where more is only slower
        for edge in (limits['low'], limits['high']):
            if edge is not None:
                group(**{f.name: type(f.default)(edge)})
    for choice in limits['choices']:
        group(**{f.name: choice})


@pytest.mark.parametrize(('group', 'f'), EVERY, ids=NAMES)
def test_every_limit_holds_and_every_type_is_checked(group: type, f: Any) -> None:
    wrong: list[Any] = [None, [], {}, b'x']
    if type(f.default) in (int, float):
        wrong += [f.metadata['low'] - 1, 'x', True]
        wrong += [] if f.metadata['high'] is None else [f.metadata['high'] * 2 + 1]
    if type(f.default) is int:
        wrong += [float(f.default), 1.5]
    if type(f.default) is float:
        wrong += [float('nan'), float('inf'), -float('inf')]
    if type(f.default) is tuple:
        wrong += ['x', (1,)]
    if type(f.default) is bool:
        wrong += [0, 1, 'true']
    if type(f.default) is str:
        wrong += [3, 'no-such-choice'] if f.metadata['choices'] else [3]
    for value in wrong:
        with pytest.raises(ConfigError, match=rf'{group.__name__}\.{f.name}: expected .*found'):
            group(**{f.name: value})


def test_a_message_names_range_and_unit() -> None:
    with pytest.raises(ConfigError, match=r'NodeOptions\.sync_slop: expected 0\.0 to 1\.0 s, found 2\.0'):
        NodeOptions(sync_slop=2.0)
    with pytest.raises(ConfigError, match=r"NodeOptions\.modality: expected one of rgbd, rgb, found 'depth'"):
        NodeOptions(modality='depth')


def test_whole_numbers_serve_as_floats() -> None:
    assert EstimatorOptions(pixel_noise=1).pixel_noise == 1


def test_from_dict_suggests_the_nearest_name() -> None:
    assert from_dict(EstimatorOptions, {'refined': 4}).refined == 4
    with pytest.raises(ConfigError, match="EstimatorOptions: unknown option 'refine_step'; did you mean refine_steps"):
        from_dict(EstimatorOptions, {'refine_step': 4})
    with pytest.raises(ConfigError, match='known: .*pixel_noise'):
        from_dict(EstimatorOptions, {'zzzzzz': 4})
    with pytest.raises(ConfigError, match='unknown option 5'):
        from_dict(EstimatorOptions, {5: 4})


def test_settings_from_the_command_line() -> None:
    assert parse_settings({'': MappingOptions}, []) == {}
    assert parse_settings({'': MappingOptions}, ['steps=50', 'rgb_only=true', 'learning_rate=0.001']) == {
        'steps': 50, 'rgb_only': True, 'learning_rate': 0.001}
    # YAML 1.1 reads 1e-3 as text; a person means a number
    assert parse_settings({'': MappingOptions}, ['learning_rate=1e-3']) == {'learning_rate': 0.001}


@pytest.mark.parametrize(('text', 'message'), [
    ('steps', 'expected NAME=VALUE'), ('steps=', 'expected int'), ('steps=abc', 'expected int'), ('steps=[', 'steps=\\['),
    ('step=3', 'did you mean steps'),
    ('steps=-1', 'expected 0 to'), ('steps=1.5', 'expected int'), ('=3', 'unknown option'), ('rgb_only=5', 'expected bool'),
    ('steps=2020-13-45', 'steps'),
    ('learning_rate=nan', 'learning_rate'), ('steps=a=b', 'expected int'), ('steps=!!python/name:os.system', 'steps')])
def test_settings_that_are_none(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_settings({'': MappingOptions}, [text])


def test_an_unknown_group_gets_the_nearest_full_name() -> None:
    with pytest.raises(ConfigError, match='did you mean integrity.min_spread'):
        build_groups(LOCALIZER_GROUPS, {'integrty.min_spread': 0.5})


def test_the_precision_moves_a_group_of_limits_and_what_is_set_itself_stays() -> None:
    low, medium, high = (build_groups(LOCALIZER_GROUPS, {'integrity.precision': name}) for name in ('low', 'medium', 'high'))
    assert medium == build_groups(LOCALIZER_GROUPS, {}) | {'integrity': IntegrityOptions(precision='medium')}
    assert set(PRECISION['low']) <= set(PRECISION['high'])
    for name in PRECISION['high']:
        prefix, _, own = name.partition('.')
        values = [getattr(groups[prefix], own) for groups in (low, medium, high)]
        strict = values if own.startswith('min_') or own in ('sure_landmarks', 'agreeing') else values[::-1]
        assert strict == sorted(strict) and strict[0] < strict[-1], name
    with pytest.raises(ConfigError, match='precision: expected str'):
        build_groups(LOCALIZER_GROUPS, {'integrity.precision': ['high']})
    own = build_groups(LOCALIZER_GROUPS, {'integrity.precision': 'high', 'integrity.min_inliers': 7.0})['integrity']
    assert own.min_inliers == 7.0 and own.min_spread == high['integrity'].min_spread
