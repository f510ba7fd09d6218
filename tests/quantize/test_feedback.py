from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from scotopia.model.rule import Rule
from scotopia.model.sampling import sample_mask
from scotopia.model.synthetic import synthetic_clips
from scotopia.model.task import run
from scotopia.model.video import Clip
from scotopia.quantize import feedback
from scotopia.quantize.fake import FakeQuantRule
from scotopia.quantize.feedback import round_weights
from scotopia.quantize.formats import SCALES, Formats, Precision, folded_layers, unsigned_format
from scotopia.quantize.post_training import Calibration

Make = Callable[..., Any]  # a fixture of conftest.py


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return synthetic_clips(2, 10, 16, seed=0)


@pytest.fixture
def rule(float_rule: Make, small_config: Make) -> Rule:
    made = float_rule(0, small_config(inputs=("trust", "recall")))
    assert isinstance(made, Rule)
    return made


def chosen(rule: Rule, bits: int = 4, scales: str = "output") -> Formats:
    hidden = [unsigned_format(2.0, 8)] * rule.config.hidden
    return Formats.choose(rule, hidden, Precision(weight=bits), scales=scales)


def test_moments_are_means_of_what_the_layers_see(
    rule: Rule, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback, "_STEPS", 1)
    monkeypatch.setattr(feedback, "_CELLS", 1)
    hidden: list[torch.Tensor] = []
    hook = rule.perceive.register_forward_hook(lambda *called: hidden.append(called[2].relu()[0]))
    moments = Calibration.measure(rule, clips[:1], density=0.1).moments
    hook.remove()
    neurons = torch.stack(hidden).detach().double().transpose(0, 1).flatten(1).numpy()
    np.testing.assert_allclose(moments.update[:-1, -1], neurons.mean(1))
    np.testing.assert_allclose(moments.update[:-1, :-1], neurons @ neurons.T / neurons.shape[1])
    assert moments.perceive[-1, -1] == 1
    # In the order of the weights: the fifth tap of channel 0 is the prediction of the cell itself.
    states = list(run(rule, clips[0].frames, sample_mask(clips[0].frames.shape, 0.1, 0)))
    assert len(hidden) == len(states) * rule.config.steps_per_frame


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("kind", ["gated", "residual"])
def test_rounded_weights_are_rounded_no_further(
    scales: str, kind: str, float_rule: Make, small_config: Make, clips: list[Clip]
) -> None:
    rule = float_rule(1, small_config(inputs=("trust",), kind=kind))
    formats = chosen(rule, scales=scales)
    rounded = round_weights(rule, formats, Calibration.measure(rule, clips, density=0.1).moments)
    fake = FakeQuantRule(rounded, formats).layers()
    weights = folded_layers(rounded)
    for i in (0, 2):
        torch.testing.assert_close(fake[i], weights[i], rtol=0, atol=1e-6)
    assert not torch.equal(weights[1], folded_layers(rule)[1])


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_sums_change_less_than_by_rounding_to_nearest(
    bits: int, rule: Rule, clips: list[Clip]
) -> None:
    moments = Calibration.measure(rule, clips, density=0.1).moments
    formats = chosen(rule, bits)
    exact = folded_layers(rule)

    def error(layers: tuple[torch.Tensor, ...]) -> list[float]:
        """Mean square of what the sums of both layers are off by."""
        found = []
        for i, seen in ((0, moments.perceive), (2, moments.update)):
            off = torch.cat(
                [
                    (layers[j] - exact[j]).detach().double().reshape(len(exact[j]), -1)
                    for j in (i, i + 1)
                ],
                1,
            )
            found.append(float(((off @ torch.from_numpy(seen)) * off).sum()))
        return found

    ours = error(FakeQuantRule(round_weights(rule, formats, moments), formats).layers())
    nearest = error(FakeQuantRule(rule, formats).layers())
    assert all(a < b / 2 for a, b in zip(ours, nearest, strict=True)), (ours, nearest)


def test_weights_that_fit_their_formats_stay(rule: Rule, clips: list[Clip]) -> None:
    formats = chosen(rule)
    fitting = round_weights(rule, formats, Calibration.measure(rule, clips, density=0.1).moments)
    again = round_weights(
        fitting, formats, Calibration.measure(fitting, clips, density=0.1).moments
    )
    for ours, given in zip(folded_layers(again), folded_layers(fitting), strict=True):
        torch.testing.assert_close(ours, given, rtol=0, atol=1e-6)


def test_what_is_always_zero_does_not_matter(rule: Rule, clips: list[Clip]) -> None:
    with torch.no_grad():
        assert rule.perceive.bias is not None
        rule.perceive.bias[1] = -1e3  # a neuron that never fires
    moments = Calibration.measure(rule, clips, density=0.1).moments
    assert (moments.update[1] == 0).all()
    rounded = round_weights(rule, chosen(rule), moments)
    assert all(torch.isfinite(tensor).all() for tensor in folded_layers(rounded))
