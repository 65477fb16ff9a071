"""Bad settings are refused with what was given, what is accepted and what to do; JSON both ways loses nothing."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgjax import schema, switches
from psgjax.commands import train
from psgjax.config import Config, ConfigError, Data, Mesh, Method, Network, Optimizer
from psgjax.runs.folder import read_config
from psgjax.switches import METHODS

BAD = [
    (Method, {"generators": 0}, "method.generators is 0; it must be a whole number of at least 1"),
    (Method, {"correct_weight": 1.5}, "method.correct_weight is 1.5; it must be a number from 0 to 1"),
    (Method, {"average_loss_weight": math.inf}, "method.average_loss_weight is inf"),
    (Method, {"loss": "hinge"}, "--method.scores independent"),
    (Method, {"scores": "independent", "loss": "wasserstein"}, "no choice to gate by; use --method.gate none"),
    (Method, {"scores": "independent", "loss": "mgan"}, "whatever the discriminator chose"),
    (Method, {"generators": 1, "scores": "independent", "gate": "none", "loss": "mad-gan"}, "needs at least two"),
    (Method, {"gate": "none", "average_loss": "both"}, "without a gate there are no branches"),
    (Method, {"discriminator_steps": 2}, "use --method.update-order alternating"),
    (
        Method,
        {"scores": "independent", "gate": "none", "loss": "wasserstein", "generator_loss": "minimax"},
        "one generator loss",
    ),
    (Network, {"width": 0}, "network.width is 0"),
    (Optimizer, {"learning_rate": 0.0}, "optimizer.learning_rate is 0.0; it must be a finite number above 0"),
    (Optimizer, {"learning_rate": -1.0}, "optimizer.learning_rate is -1.0"),
    (Optimizer, {"learning_rate": math.nan}, "optimizer.learning_rate is nan"),
    (Optimizer, {"discriminator_learning_rate": math.inf}, "optimizer.discriminator_learning_rate is inf"),
    (Optimizer, {"beta1": 1.0}, "optimizer.beta1 is 1.0"),
    (Data, {"train_images": -1}, "data.train_images is -1"),
    (Data, {"size": -1}, "data.size is -1"),
    (Data, {"held_out": 1.0}, "data.held_out is 1.0; it must be a share between 0 and 1"),
    (Data, {"broken": math.nan}, "data.broken is nan"),
    (Config, {"steps": 0}, "steps is 0; it must be a whole number of at least 1"),
    (Config, {"batch_size": -3}, "batch_size is -3"),
    (Config, {"seed": -1}, "seed is -1"),
]


@pytest.mark.parametrize(("kind", "fields", "message"), BAD)
def test_bad_settings_are_refused_with_the_reason(kind, fields, message):
    with pytest.raises(ConfigError) as error:
        kind(**fields)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


NAMES = [
    (Method, {"loss": "hing"}, "unknown method.loss 'hing'; known are cross-entropy, hinge, .*Did you mean 'hinge'"),
    (Method, {"gate": "tripplet"}, "unknown method.gate 'tripplet'; .*Did you mean 'triplet'"),
    (Method, {"gate": None}, "method.gate is None; it must be of type str"),
    (Network, {"name": "resnett"}, "unknown network.name 'resnett'; known are dcgan, .*Did you mean 'resnet'"),
    (Optimizer, {"schedule": "x"}, "optimizer.schedule is 'x'; it must be one of constant, linear, cosine"),
    (Data, {"source": "Folder"}, "unknown data.source 'Folder'; .*Did you mean 'folder'"),
    (
        Config,
        {"precision": "f16"},
        "precision is 'f16'; it must be one of float32, bfloat16, tf32.*Did you mean '.*16'",
    ),
    (Config, {"steps": 10.0}, "steps is 10.0; it must be of type int"),
    (Config, {"method": "psg"}, "method is 'psg'; it must be of type Method"),
    (Method, {"spectral_norm": 1}, "method.spectral_norm is 1; it must be of type bool"),
    (Optimizer, {"beta1": "0.5"}, "optimizer.beta1 is '0.5'; it must be of type float"),
    (Optimizer, {"learning_rate": 10**400}, "must be of type float"),
    (Mesh, {"data": True}, "mesh.data is True; it must be of type int"),
]


@pytest.mark.parametrize(("kind", "fields", "message"), NAMES)
def test_names_and_types_are_checked_in_python_as_on_the_command_line(kind, fields, message):
    with pytest.raises(ConfigError, match=message):
        kind(**fields)


def test_upper_and_lower_case_are_no_difference_between_names():
    with pytest.raises(ConfigError, match="Did you mean 'psg'?"):
        switches.named_method("PSG")


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown method 'PSG'.*Did you mean 'psg'"):
        switches.named_method("PSG")
    with pytest.raises(ConfigError, match="unknown method 'sgan'.*psg, sngan, gan.*Did you mean 'sngan'"):
        switches.named_method("sgan")


def test_penalties_that_fall_are_refused_where_none_of_the_methods_has_any():
    given = train.Options(methods=("psg", "gan"), optimizer=Optimizer(penalty_end=0.1))
    with pytest.raises(ConfigError, match="optimizer.penalty_end 0.1 would be ignored: there are no penalties; leave"):
        train.configure(given, train.USUAL)
    assert len(train.configure(dataclasses.replace(given, methods=("psg", "choice")), train.USUAL)) == 2


def test_a_batch_larger_than_the_training_set():
    with pytest.raises(ConfigError, match="batch_size 64 .* the training set has 50; use a --batch-size of at most 50"):
        Config().steps_per_epoch(50)
    assert Config(batch_size=8).steps_per_epoch(50) == 6


SETTINGS = st.builds(
    Config,
    method_name=st.sampled_from(list(METHODS)),
    method=st.sampled_from(list(METHODS.values())),
    network=st.builds(Network, width=st.integers(1, 512)),
    optimizer=st.builds(Optimizer, learning_rate=st.floats(1e-9, 10), beta1=st.floats(0, 0.999)),
    data=st.builds(Data, dir=st.none() | st.just(Path("a/b")), train_images=st.integers(0, 10**6)),
    seed=st.integers(0, 2**32 - 1),
)


@settings(deadline=None)
@given(SETTINGS)
def test_json_and_back_is_the_same(config):
    assert schema.from_json(Config, schema.to_json(config)) == config


LEAVES = [
    *(None, True, False, 0, 1, -1, 0.5, -0.0, math.nan, math.inf, -math.inf, 2**31, -(2**63), 10**400, 1e308, 5e-324),
    *("", "psg", "a\nb", "\0", "\ud800", "<script>", "x" * 1000, "__class__", "../..", "1", [], {}, [[]], {"": {}}),
]
JSON = st.recursive(
    st.sampled_from(LEAVES) | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def places(tree, path=()):
    """The path of every value in decoded JSON."""
    yield path
    for key in tree if isinstance(tree, dict) else ():
        yield from places(tree[key], (*path, key))


def changed(tree, path, value):
    return {**tree, path[0]: changed(tree.get(path[0]), path[1:], value)} if path else value


@st.composite
def mutated(draw):
    """A valid configuration as decoded JSON with other values, or unknown settings, at up to three of its places."""
    tree = json.loads(schema.to_json(draw(SETTINGS)))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(tree))))
        inside = tree
        for key in path:
            inside = inside[key]
        if isinstance(inside, dict) and draw(st.booleans()):
            path = (*path, draw(st.text() | st.sampled_from(["Seed", "__init__", "x" * 1000])))
        tree = changed(tree, path, draw(JSON))
        if not isinstance(tree, dict):
            break
    return json.dumps(tree)


def check_read(text):
    """Any text is a configuration that survives the way out and back, or one line."""
    try:
        config = schema.from_json(Config, text)
    except ConfigError as error:
        assert str(error)
        assert "\n" not in str(error)
        assert len(str(error)) < 500
    else:
        assert schema.from_json(Config, schema.to_json(config)) == config


@pytest.mark.uncovered
@settings(max_examples=300, deadline=None)
@given(mutated() | JSON.map(json.dumps))
def test_any_json_is_a_configuration_or_a_clear_error(text):
    check_read(text)


DEEP = 100_000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe{",
        b"{" * DEEP,
        b'{"method": ' * DEEP + b"1" + b"}" * DEEP,
        b'{"seed": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"optimizer": {"learning_rate": ' + b"9" * 4000 + b"}}",
        b'{"seed": __import__("os")}',
        b"null",
    ],
    ids=range(9),
)
def test_any_bytes_are_a_configuration_or_a_clear_error(content, tmp_path):
    check_read(content.decode("latin-1"))
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match="is not a configuration of this version"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"seed": "3"}', "seed is '3'; it must be of type int"),
        ('{"seed": true}', "seed is True; it must be of type int"),
        ('{"network": 3}', "network is 3; it must be a JSON object"),
        ('{"method": {"loss": "hing"}}', "unknown method.loss 'hing'; known are cross-entropy"),
        ('{"method": {"los": "hinge"}}', "Did you mean 'loss'?"),
        ('{"data": {"dir": 3}}', "data.dir is 3; it must be of type Path"),
        ("[", "not JSON"),
    ],
)
def test_json_that_is_no_configuration_says_where(text, message):
    with pytest.raises(ConfigError) as error:
        schema.from_json(Config, text)
    assert message in str(error.value)


def test_a_whole_number_in_json_is_a_float_where_one_is_due():
    rate = schema.from_json(Config, '{"optimizer": {"learning_rate": 1}}').optimizer.learning_rate
    assert (rate, type(rate)) == (1.0, float)


def test_differences_are_named_in_full():
    one = Config()
    other = dataclasses.replace(one, seed=3, method=dataclasses.replace(one.method, gate="mean"))
    assert schema.differences(one, other) == ["method.gate: triplet -> mean", "seed: 0 -> 3"]
    assert schema.differences(one, one) == []


def test_overrides_change_what_they_set_and_check_the_whole():
    overrides = schema.overrides_of(Method)
    assert schema.override(METHODS["sngan"], overrides()) == METHODS["sngan"]
    assert schema.override(METHODS["sngan"], overrides(power_iterations=2)).power_iterations == 2
    assert schema.override(METHODS["sngan"], overrides(spectral_norm=False)) == METHODS["gan"]
    with pytest.raises(ConfigError, match="hinge"):
        schema.override(METHODS["psg"], overrides(loss="hinge"))


def test_the_grid_is_the_papers():
    """METHOD's table: K, reading of the scores, gate, spectral normalisation."""
    rows = {name: (m.generators, m.scores, m.gate, m.spectral_norm) for name, m in METHODS.items()}
    assert rows["psg"] == (2, "softmax", "triplet", False)
    assert rows["sngan"] == (1, "independent", "none", True)
    assert rows["gan"] == (1, "independent", "none", False)
    assert rows["relativistic"] == (1, "softmax", "none", False)
    assert rows["stackelberg"] == (2, "independent", "none", False)
    assert rows["psg-sn"] == (2, "softmax", "triplet", True)
