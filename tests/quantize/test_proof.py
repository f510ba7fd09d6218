import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from scotopia.cli.rules import rule_path
from scotopia.graph.build import Builder
from scotopia.graph.errors import InputError
from scotopia.graph.intervals import (
    Interval,
    OutOfRange,
    Ranges,
    check,
    compare_with,
    derive,
    prove,
)
from scotopia.graph.qformat import IntArray, Overflow, QFormat, Rounding
from scotopia.graph.surroundings import Event
from scotopia.model.config import INPUTS
from scotopia.quantize.integer_rule import GraphRule, IntegerRule
from scotopia.quantize.layered_rule import LayeredRule

Make = Callable[..., Any]  # a fixture of conftest.py

KINDS = ["gated", "residual"]
BORDERS = ["zero", "replicate", "wrap"]
SATURATING = [Overflow.SAT, Overflow.SAT_SYM]


def formats_box(rule: IntegerRule) -> dict[str, Interval]:
    formats = zip(rule.channel_names, rule.channel_formats, strict=True)
    return {name: Interval.of(format) for name, format in formats}


def words(rule: IntegerRule) -> dict[str, int]:
    return {name: word for word, name in rule.graph.names.items()}


def random_noise(rule: IntegerRule, rng: np.random.Generator, *shape: int) -> IntArray:
    noise = rng.integers(0, 2, (*shape[:-2], rule.noise_planes, *shape[-2:]))
    return np.where(rng.random((*shape[:-2], 1, 1, 1)) < 0.5, noise, rng.integers(0, 2))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    border=st.sampled_from(BORDERS),
    rounding=st.sampled_from(Rounding),
    overflow=st.sampled_from(SATURATING),
    fire_rate=st.sampled_from([1.0, 0.5]),
    dither=st.integers(0, 8),
    coarse=st.booleans(),
)
def test_nothing_that_a_layered_rule_computes_leaves_its_range(
    seed: int,
    kind: str,
    border: str,
    rounding: Rounding,
    overflow: Overflow,
    fire_rate: float,
    dither: int,
    coarse: bool,
    small_config: Make,
    mixed_rule: Make,
    extreme_state: Make,
) -> None:
    config = small_config(kind=kind, border=border, fire_rate=fire_rate)
    rule = mixed_rule(seed, config, rounding, coarse)
    dither = 0 if kind == "residual" else min(dither, rule.gate_format.frac_bits)
    rule = dataclasses.replace(rule, overflow=overflow, dither=dither)
    rng = np.random.default_rng(seed)
    shape = 8, 3, 4
    # What one step can reach from the initial state, and from any state of the formats.
    for start, held in (
        (np.zeros((8, len(config.channel_names), 3, 4), np.int64), rule.with_proof().ranges),
        (extreme_state(rule, seed, *shape), rule.ranges),
    ):
        check(rule.graph, held.channels)
        state = start
        for i in range(6):
            sample = extreme_state(rule, seed + i, *shape)[:, config.channels]
            given = rule.given(sample, rng.random(shape) < rng.random())
            noise = random_noise(rule, rng, *shape)
            state = rule.step(state, given, noise, watch=compare_with(held))


@pytest.mark.parametrize("overflow", SATURATING)
@pytest.mark.parametrize("rounding", [Rounding.TRN, Rounding.RND_CONV])
@pytest.mark.parametrize("seed", range(3))
def test_inputs_have_the_ends_of_all_states_and_samples(
    seed: int, rounding: Rounding, overflow: Overflow, small_config: Make, mixed_rule: Make
) -> None:
    config = small_config(channels=2, trace_bits=2)
    formats = (QFormat(1, 2), QFormat(1, 3))
    rule = mixed_rule(seed, config, rounding, state=formats)
    rule = dataclasses.replace(rule, overflow=overflow)
    box = formats_box(rule)
    held = [*box.values(), box["sample"], Interval(0, 1)]
    codes = [np.arange(one.lowest, one.highest + 1) for one in held]
    *state, sample, valid = (grid.reshape(1, -1) for grid in np.meshgrid(*codes))
    seen: dict[int, IntArray] = {}

    def watch(index: int, found: IntArray) -> None:
        seen.update(zip(rule.graph.words(index), found, strict=True))

    rule.step(np.stack(state), rule.given(sample, valid == 1), None, watch)
    for name in INPUTS:
        word = words(rule)[f"input {name}"]
        found = Interval(int(seen[word].min()), int(seen[word].max()))
        # What is recalled is the older the less it is trusted: the intervals do not know.
        if name == "recall":
            assert rule.ranges.words[word].holds(found)
        else:
            assert rule.ranges.words[word] == found, name


@pytest.mark.parametrize("name", ["retina-int", "retina-shift"])
def test_shipped_rules_are_proven(name: str) -> None:
    rule = IntegerRule.load(rule_path(name))
    assert rule.proof == prove(rule.graph).channels == rule.ranges.channels
    assert rule.ranges.accumulator_bits <= 32
    assert rule.ranges.narrower == {}
    for held, format in zip(rule.ranges.channels.values(), rule.channel_formats, strict=True):
        assert Interval.of(format).holds(held)


# Refusals


def test_result_that_would_wrap_is_named(small_config: Make, mixed_rule: Make) -> None:
    rule = mixed_rule(3, small_config(inputs=()))
    rule = dataclasses.replace(rule, overflow=Overflow.WRAP)
    with pytest.raises(InputError) as caught:
        rule.with_proof()
    assert re.fullmatch(
        r"hidden neuron h\d can reach -?\d+, beyond UQ-?\d\.\d's \d+: choose overflow SAT or a "
        "wider format",
        str(caught.value),
    )


def test_channel_that_wraps_in_the_end_is_refused(small_config: Make, mixed_rule: Make) -> None:
    config = small_config(kind="residual", inputs=(), channels=1, hidden=1)
    rule = mixed_rule(0, config)
    format = rule.state_formats[0]
    update = dataclasses.replace(
        rule.update, weight=0 * rule.update.weight, weight_frac=np.array([format.frac_bits])
    )
    perceive = dataclasses.replace(
        rule.perceive, weight=0 * rule.perceive.weight, bias=np.array([0])
    )
    update = dataclasses.replace(update, bias=np.array([1 << rule.update.inputs[0].frac_bits]))
    counting = dataclasses.replace(rule, perceive=perceive, update=update, overflow=Overflow.WRAP)
    with pytest.raises(InputError) as caught:
        counting.with_proof()
    assert str(caught.value) == (
        f"channel x0 can reach {format.highest + 1}, beyond {format}'s {format.highest}: "
        "choose overflow SAT or a wider format"
    )
    saturating = dataclasses.replace(counting, overflow=Overflow.SAT).with_proof()
    assert saturating.ranges.channels["x0"] == Interval(0, format.highest)
    assert saturating.ranges.clips == ("channel x0",)


def test_proof_of_other_weights_is_refused(proven: LayeredRule) -> None:
    update = dataclasses.replace(proven.update, bias=proven.update.bias + (1 << 12))
    changed = dataclasses.replace(proven, update=update)
    assert changed.proof is not None
    with pytest.raises(InputError, match=r"^range proof is wrong: range of channel x\d is "):
        check(changed.graph, changed.proof)


# Files


@pytest.fixture(scope="module")
def proven(small_config: Make, mixed_rule: Make) -> LayeredRule:
    """A rule whose state stays well inside its formats."""
    rule: LayeredRule = mixed_rule(3, small_config(border="zero"))
    weight = rule.update.weight // 8
    update = dataclasses.replace(rule.update, weight=weight, bias=rule.update.bias // 8)
    return dataclasses.replace(rule, update=update).with_proof()


@pytest.fixture(scope="module")
def written() -> GraphRule:
    """A rule written as a graph, whose channels are not in alphabetical order."""
    build = Builder()
    state = build.channels({"results": QFormat(1, 3), "b": QFormat(1, 7), "a": QFormat(2, 7)})
    c, valid = build.inputs({"c": QFormat(1, 3), "valid": QFormat(1, 0, signed=False)})
    after = {"results": build.where(valid, c, state[0]), "b": state[1], "a": state[0] * 0.0625}
    graph = build.graph(after)
    return GraphRule(graph, events=(Event("c", "valid"),)).with_proof()


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the description of a rule file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    description = json.loads(metadata["description"])
    change(description)
    save_file(load_file(path), path, metadata | {"description": json.dumps(description)})


@pytest.fixture(params=["proven", "written"])
def rule(request: pytest.FixtureRequest) -> IntegerRule:
    found: IntegerRule = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def path(rule: IntegerRule, tmp_path: Path) -> Path:
    path = tmp_path / "rule.safetensors"
    rule.save(path)
    return path


def test_proof_is_saved_with_its_rule(rule: IntegerRule, path: Path) -> None:
    loaded = IntegerRule.load(path)
    assert loaded.proof == rule.proof == prove(rule.graph).channels
    assert tuple(loaded.ranges.channels) == loaded.channel_names
    assert loaded.ranges == rule.ranges


def test_rule_without_proof_is_proven_on_loading(rule: Any, path: Path) -> None:
    dataclasses.replace(rule, proof=None).save(path)
    assert IntegerRule.load(path).proof == rule.proof


def test_rule_that_cannot_be_proven_is_refused_on_loading(
    proven: LayeredRule, tmp_path: Path
) -> None:
    path = tmp_path / "rule.safetensors"
    dataclasses.replace(proven, proof=None, overflow=Overflow.WRAP).save(path)
    with pytest.raises(InputError, match=r"^rule .*: .* can reach -?\d+, beyond .*"):
        IntegerRule.load(path)


def older(rule: LayeredRule) -> dict[str, Any]:
    """A proof as earlier versions wrote it."""
    assert rule.proof is not None
    fields = {name: [-5, 5] for name in ("total", "partial", "rounded", "fitted")}
    return {
        "channels": [{"name": n, "range": [*held.ends]} for n, held in rule.proof.items()],
        "results": [{"name": "input recall"} | fields, {"name": "hidden neuron h0"} | fields],
    }


def test_proof_of_an_earlier_version_is_read_and_older_files_have_none(
    proven: LayeredRule, tmp_path: Path
) -> None:
    path = tmp_path / "rule.safetensors"
    proven.save(path)
    edit(path, lambda description: description.update(proof=older(proven)))
    assert IntegerRule.load(path).proof == proven.proof
    edit(path, lambda description: description.pop("proof"))
    assert IntegerRule.load(path).proof == proven.proof


def test_tampered_proof_is_refused_on_loading(rule: IntegerRule, path: Path) -> None:
    name = rule.channel_names[-1]
    held = rule.ranges.channels[name]

    def shrink(description: dict[str, Any]) -> None:
        description["proof"][name][1] -= 1

    edit(path, shrink)
    with pytest.raises(InputError) as caught:
        IntegerRule.load(path)
    assert str(caught.value) == (
        f"rule {path}: range proof is wrong: range of channel {name} is {held.lowest}.."
        f"{held.highest - 1}, which does not hold {held}: prove it again"
    )


def refused(path: Path) -> None:
    with pytest.raises(InputError) as caught:
        IntegerRule.load(path)
    assert re.fullmatch(rf"rule {re.escape(str(path))}(:| has no valid) [^\n]+", str(caught.value))


@pytest.mark.parametrize(
    "change",
    [
        lambda proof: proof.popitem(),
        lambda proof: proof.update(y=[0, 1]),
        *(
            lambda proof, ends=ends: proof.update({next(iter(proof)): ends})
            for ends in (
                *([1], [1, 0], ["0", "1"], [0.5, 1], [False, True], [-(10**40), 10**40]),
                *(None, 7, [0, 1, 2], {}, "01"),
            )
        ),
    ],
)
def test_malformed_proof_is_refused_on_loading(
    path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    edit(path, lambda description: change(description["proof"]))
    refused(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda proof: proof.pop("channels"),
        lambda proof: proof["channels"].append({"name": "x0"}),
        lambda proof: proof["channels"][0].update(range=[1]),
        lambda proof: proof["channels"][0].update(range=[1, 0]),
        lambda proof: proof["channels"][0].update(range=["0", "1"]),
        lambda proof: proof["channels"][0].update(range=[-(10**40), 10**40]),
        lambda proof: proof["channels"][0].update(name=["x0"]),
        lambda proof: proof["channels"][0].update(name=None),
        lambda proof: proof.update(channels=None),
        lambda proof: proof.pop("results"),
        lambda proof: proof.update(results=7),
        lambda proof: proof["results"][0].pop("total"),
        lambda proof: proof["results"][0].update(total=[-1e6, 1e6]),
    ],
)
def test_malformed_proof_of_an_earlier_version_is_refused(
    proven: LayeredRule, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    path = tmp_path / "rule.safetensors"
    proven.save(path)
    proof = older(proven)
    change(proof)
    edit(path, lambda description: description.update(proof=proof))
    refused(path)


@pytest.mark.parametrize("proof", [[], 7, "x", {}, True])
def test_proof_that_is_none_is_refused_on_loading(path: Path, proof: object) -> None:
    edit(path, lambda description: description.update(proof=proof))
    refused(path)


# The golden model, watched


def violation(rule: IntegerRule, ranges: Ranges, steps: int = 2) -> str:
    """What the watched model says on a 2 x 3 array, where a sample arrives at x 1, y 1."""
    state, valid = rule.initial_state(2, 3), np.zeros((2, 3), bool)
    valid[1, 1] = True
    with pytest.raises(OutOfRange) as caught:
        for _ in range(steps):
            given = rule.given(np.full((2, 3), 3), valid)
            state = rule.step(state, given, watch=compare_with(ranges))
    return str(caught.value)


def test_watched_model_names_what_left_its_range(proven: LayeredRule) -> None:
    for name, word in words(proven).items():
        ranges = derive(proven.graph, proven.proof)
        ranges.words[word] = Interval(-1000, -999)
        assert re.fullmatch(
            rf"cell \(x \d, y \d\): {name} is -?\d+, outside -1000\.\.-999",
            violation(proven, ranges),
        )


def test_watched_model_knows_the_channels(proven: LayeredRule) -> None:
    assert proven.proof is not None
    ranges = derive(proven.graph, {**proven.proof, "sample": Interval(-4, 2)})
    # In the second step it is there.
    assert violation(proven, ranges) == "cell (x 1, y 1): sample is 3, outside -4..2"
