"""The options: what they may be, what their faults are told as, and who takes them."""

import pickle
from dataclasses import FrozenInstanceError, fields, replace
from typing import get_type_hints

import numpy as np
import pytest
from torch import nn

import gradsieve as gs
from gradsieve.codec import VALUES
from gradsieve.config import OPTIONS, Options, SieveConfig, default_exchange
from gradsieve.exchange.topology_names import EXCHANGES
from gradsieve.lab.methods.local_words import read_local_settings
from gradsieve.lab.methods.sieve_words import read_config


def outer_sync(config=None, **options):
    """It reads its options before it looks for a process group, of which there is none."""
    return gs.OuterSync(nn.Linear(2, 2), config, **options)


TAKERS = [SieveConfig, gs.SieveState, outer_sync]
WITH_CONFIG = [(gs.SieveState, "SieveState"), (outer_sync, "OuterSync")]


class Halves:
    """A policy of a user's own."""

    measured = "sent"

    def next(self, moments, threshold):
        return 0.5


class Misspelt(Halves):
    measured = "gradients"


class Nextless:
    measured = "sent"


WRONG_TYPES = [
    (
        {"threshold": 0.01},
        r"the threshold must be a policy such as .*, got 0\.01",
    ),
    ({"threshold": "1 %"}, "the threshold must be a policy such as .*, got '1 %'"),
    ({"threshold": gs.Sigma}, "the threshold must be a policy such as .*, got <class"),
    ({"threshold": Nextless()}, r"the threshold .*Nextless.* has no method next\(moments"),
    ({"values": 32}, "values must be one of levels, .*, got 32"),
    ({"values": None}, "values must be one of levels, .*, got None"),
    ({"values": ["levels"]}, r"values must be one of .*, got \['levels'\]"),
    ({"exchange": 1}, "exchange must be one of auto, gather, .*, dense-fp16, got 1"),
    ({"exchange": ("gather",)}, "exchange must be one of auto, gather, .*, got "),
    ({"node_size": 2.0}, r"node_size must be a whole number, got 2\.0"),
    ({"node_size": True}, "node_size must be a whole number, got True"),
    ({"rotation": "16"}, "rotation must be a whole number, got '16'"),
    ({"rotation": None}, "rotation must be a whole number, got None"),
    ({"error_feedback": 1}, "error_feedback must be True or False, got 1"),
    ({"error_feedback": "no"}, "error_feedback must be True or False, got 'no'"),
    ({"error_feedback": None}, "error_feedback must be True or False, got None"),
    ({"min_numel": 1e3}, r"min_numel must be a whole number, got 1000\.0"),
    ({"min_numel": "many"}, "min_numel must be a whole number, got 'many'"),
    ({"start_step": 1.5}, r"start_step must be a whole number, got 1\.5"),
    ({"start_step": False}, "start_step must be a whole number, got False"),
    ({"ramp_steps": [8]}, r"ramp_steps must be a whole number, got \[8\]"),
]
WRONG_VALUES = [
    (
        {"threshold": Misspelt()},
        "measured of .*Misspelt.* must be one of sent, .*, got 'gradients'",
    ),
    ({"values": "float"}, "values must be one of levels, .*, got 'float'"),
    ({"values": "Levels"}, "values must be one of levels, .*, got 'Levels'"),
    ({"exchange": "fastest"}, "exchange must be one of auto, gather, .*, got 'fastest'"),
    ({"exchange": "two_shot"}, "exchange must be one of auto, gather, .*, got 'two_shot'"),
    ({"exchange": ""}, "exchange must be one of auto, gather, .*, got ''"),
    ({"node_size": 0}, "node_size must be 1 or more, got 0"),
    ({"rotation": -1}, "rotation must be 0 or more, got -1"),
    ({"min_numel": -1}, "min_numel must be 0 or more, got -1"),
    ({"start_step": -3}, "start_step must be 0 or more, got -3"),
    ({"ramp_steps": -3}, "ramp_steps must be 0 or more, got -3"),
]


def test_every_option_is_refused_in_some_way():
    """A switch has no wrong values of its type."""
    assert {name for options, _ in WRONG_TYPES for name in options} == set(OPTIONS)
    refused = {name for options, _ in WRONG_VALUES for name in options}
    assert refused == set(OPTIONS) - {"error_feedback"}


@pytest.mark.parametrize("take", TAKERS)
@pytest.mark.parametrize(("options", "words"), WRONG_TYPES)
def test_another_type_is_one_clear_error(take, options, words):
    with pytest.raises(TypeError, match=f"^{words}"):
        take(**options)


@pytest.mark.parametrize("take", TAKERS)
@pytest.mark.parametrize(("options", "words"), WRONG_VALUES)
def test_another_value_is_one_clear_error(take, options, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        take(**options)


def test_what_replaces_a_config_s_option_is_looked_at_as_well():
    config = SieveConfig(threshold=gs.Sigma(2))
    for take, _ in WITH_CONFIG:
        with pytest.raises(ValueError, match=r"^values must be one of"):
            take(config, values="float8")
        with pytest.raises(TypeError, match=r"^rotation must be a whole number"):
            take(config, rotation=0.5)


@pytest.mark.parametrize(
    ("take", "name"), [(gs.SieveState, "SieveState"), (outer_sync, "OuterSync")]
)
@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"treshold": gs.Sigma(2)}, r"'treshold'; did you mean threshold\?"),
        ({"value": "levels"}, r"'value'; did you mean values\?"),
        ({"ramp_step": 3}, r"'ramp_step'; did you mean ramp_steps\?"),
        ({"error_feed_back": False}, r"'error_feed_back'; did you mean error_feedback\?"),
        ({"xyz": 1}, "'xyz'; it takes threshold, values, exchange, .*, ramp_steps"),
        ({"values": "levels", "Exchange": "gather"}, r"'Exchange'; did you mean exchange\?"),
    ],
)
def test_an_unknown_option_is_told_with_the_nearest_one(take, name, options, hint):
    for config in (None, SieveConfig()):
        with pytest.raises(TypeError, match=f"^{name} has no option {hint}$"):
            take(config, **options)


@pytest.mark.parametrize(
    ("take", "name"), [(gs.SieveState, "SieveState"), (outer_sync, "OuterSync")]
)
def test_what_stands_where_a_config_belongs_is_refused(take, name):
    with pytest.raises(
        TypeError, match=rf"^{name}: .* got Fixed\(value=1\.0\); write threshold=Fixed"
    ):
        take(gs.Fixed(1.0))
    with pytest.raises(TypeError, match=f"^{name}: config must be a SieveConfig, got 0.01$"):
        take(0.01)
    with pytest.raises(TypeError, match=f"^{name}: config must be a SieveConfig, got {{'values"):
        take({"values": "float32"})


def test_local_steps_prune_from_the_first_exchange_on():
    for name in ("start_step", "ramp_steps"):
        with pytest.raises(ValueError, match=f"from its first exchange on, without {name}"):
            outer_sync(**{name: 3})
        with pytest.raises(ValueError, match=f"from its first exchange on, without {name}"):
            outer_sync(SieveConfig(**{name: 3}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("values=float", "values must be one of levels, .*, got 'float'"),
        ("sigma=2,exchange=fastest", "exchange must be one of auto, gather, .*, got 'fastest'"),
        ("node_size=0", "node_size must be 1 or more, got 0"),
        ("node_size=x", "node_size must be a whole number, got 'x'"),
        ("min_numel=1.5", r"min_numel must be a whole number, got '1\.5'"),
        ("rotation=-2", "rotation must be 0 or more, got -2"),
        ("rotation=", "rotation must be a whole number, got ''"),
        ("error_feedback=maybe", "error_feedback must be one of yes, no, got 'maybe'"),
        ("error_feedback", "error_feedback must be one of yes, no, got ''"),
        ("ramp_steps=-1", "ramp_steps must be 0 or more, got -1"),
        ("start_step=soon", "start_step must be a whole number, got 'soon'"),
        ("value=levels", "write POLICY=NUMBER, one of .* and any of error_feedback, "),
        ("threshold=0.1", "write POLICY=NUMBER, one of balanced-sigma, "),
        ("sigma=2,density=0.1", "write POLICY=NUMBER, one of "),
        ("sigma=-2", "Sigma: k must be positive and finite, got -2"),
        ("sigma=2,,rotation=8", "write POLICY=NUMBER, one of "),
    ],
)
def test_a_method_s_words_are_read_as_options(text, words):
    with pytest.raises(ValueError, match=words):
        read_config(text)
    if "start_step" not in text:
        with pytest.raises(ValueError, match=words):
            read_local_settings(f"every=5,{text}")


def test_a_state_has_the_options_that_it_was_given():
    config = SieveConfig(threshold=gs.Sigma(2), exchange="two-shot", rotation=8)
    assert gs.SieveState(config).config == config
    one_by_one = gs.SieveState(threshold=gs.Sigma(2), exchange="two-shot", rotation=8)
    assert one_by_one.config == config
    other = gs.SieveState(config, values="float32", exchange="gather").config
    assert other == replace(config, values="float32", exchange="gather")
    # An option replaces that of the config even where it is the default.
    assert gs.SieveState(config, rotation=0).config == replace(config, rotation=0)
    assert config == SieveConfig(threshold=gs.Sigma(2), exchange="two-shot", rotation=8)


def test_the_exchange_of_a_state_may_be_set_and_is_looked_at():
    state = gs.SieveState(threshold=gs.Sigma(2))
    state.exchange = "two-shot"
    assert state.config.topology_name == state.exchange == "two-shot"
    with pytest.raises(ValueError, match=r"^exchange must be one of auto, gather, "):
        state.exchange = "fastest"
    assert state.config.topology_name == state.exchange == "two-shot"
    state.exchange = None
    assert state.config.topology_name == state.exchange == "gather"


def test_defaults():
    assert SieveConfig().policy == gs.Budget("auto")
    assert SieveConfig() == SieveConfig(threshold=None) == SieveConfig(threshold=gs.Budget("auto"))
    for policy in (gs.Budget("auto"), gs.Budget(bytes_per_step=1e6)):
        assert SieveConfig(threshold=policy).topology_name == default_exchange(policy) == "auto"
    for policy in (gs.Sigma(2), gs.Fixed(0.0), gs.Density(0.1), Halves()):
        assert SieveConfig(threshold=policy).topology_name == default_exchange(policy) == "gather"


def test_the_default_exchange_is_that_of_the_policy_in_use():
    """Not that of a policy which another has replaced."""
    for config in (SieveConfig(), None):
        assert gs.SieveState(config, threshold=gs.Sigma(2)).exchange == "gather"
    assert gs.SieveState(SieveConfig(threshold=gs.Sigma(2)), threshold=None).exchange == "auto"
    named = SieveConfig(exchange="dense")
    assert gs.SieveState(named, threshold=gs.Sigma(2)).exchange == "dense"


def test_options_are_those_of_the_config():
    assert tuple(field.name for field in fields(SieveConfig)) == OPTIONS
    assert get_type_hints(Options) == get_type_hints(SieveConfig)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_all_words_that_are_listed_are_taken(values, exchange):
    config = SieveConfig(values=values, exchange=exchange)
    assert (config.values, config.topology_name) == (values, exchange)


def test_whole_numbers_of_other_libraries_are_taken():
    config = SieveConfig(rotation=np.int64(16), min_numel=np.int32(0), node_size=np.int8(1))
    assert config == SieveConfig(rotation=16, min_numel=0, node_size=1)
    assert config.lines == SieveConfig(rotation=16, min_numel=0).lines


def test_lines_say_what_must_be_alike_on_all_ranks():
    lines = SieveConfig(threshold=gs.Sigma(2.0), min_numel=100, node_size=4).lines
    assert lines == (
        "threshold=Sigma(k=2.0, of='gradient')",
        "values=levels",
        "exchange=gather",
        "rotation=0",
        "error_feedback=True",
        "min_numel=100",
        "start_step=0",
        "ramp_steps=0",
    )


def test_lines_are_alike_where_the_options_mean_the_same():
    assert SieveConfig().lines == SieveConfig(threshold=gs.Budget("auto"), exchange="auto").lines
    mbit = SieveConfig(threshold=gs.Budget(bits_per_second="1mbit"))
    assert mbit.lines == SieveConfig(threshold=gs.Budget(bits_per_second=1e6)).lines
    assert SieveConfig(node_size=2).lines == SieveConfig(node_size=8).lines
    changed = {
        "threshold": gs.Fixed(0.1),
        "values": "float32",
        "exchange": "dense",
        "rotation": 8,
        "error_feedback": False,
        "min_numel": 5,
        "start_step": 1,
        "ramp_steps": 1,
    }
    mine = SieveConfig(exchange="auto").lines
    for place, (name, value) in enumerate(changed.items()):
        other = SieveConfig(**{"exchange": "auto", name: value}).lines
        assert [n for n, pair in enumerate(zip(mine, other, strict=True)) if len({*pair}) == 2] == [
            place
        ]


def test_a_config_is_frozen_and_has_keywords_only():
    config = SieveConfig()
    with pytest.raises(FrozenInstanceError):
        config.values = "float32"
    with pytest.raises(TypeError, match="positional"):
        SieveConfig(gs.Sigma(2))
    with pytest.raises(TypeError, match="treshold"):
        SieveConfig(treshold=gs.Sigma(2))


def test_configs_are_equal_where_all_options_are():
    config = SieveConfig(threshold=gs.Density(0.1), rotation=8)
    same = SieveConfig(threshold=gs.Density(0.1), rotation=8)
    assert config == same
    assert hash(config) == hash(same)
    assert pickle.loads(pickle.dumps(config)) == config
    assert config != replace(config, threshold=gs.Density(0.2))
    assert config != replace(config, node_size=2)


def test_a_policy_of_a_user_s_own_is_taken():
    policy = Halves()
    assert gs.SieveState(threshold=policy).config.policy is policy


@pytest.mark.parametrize(
    ("step", "error"), [(2.0, TypeError), (True, TypeError), ("3", TypeError), (-1, ValueError)]
)
def test_a_step_s_number_is_checked_when_it_is_set(step, error):
    state = gs.SieveState(threshold=gs.Sigma(2))
    with pytest.raises(error, match="step must be"):
        state.step = step
    assert state.step == 0
