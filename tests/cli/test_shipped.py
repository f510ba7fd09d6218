"""What the shipped rules can do: claims about their weights, not about code."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from scotopia.cli.evaluate import Shown
from scotopia.cli.main import load_rule
from scotopia.cli.rules import rule_path
from scotopia.model import baselines
from scotopia.model.config import RuleConfig
from scotopia.model.options import TrainOptions
from scotopia.model.rule import Rule
from scotopia.model.sampling import sample_mask
from scotopia.model.score import psnr, psnr_curve
from scotopia.model.scotopic.training import train
from scotopia.model.sensor import Sensor
from scotopia.model.start import start_as_filter
from scotopia.model.synthetic import synthetic_clips
from scotopia.model.task import reconstruct
from scotopia.model.video import embedded_clip
from scotopia.quantize.task import reconstruct as reconstruct_by_codes

See = Callable[[np.ndarray, np.ndarray], np.ndarray]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiler")]


@pytest.fixture(scope="module", params=["retina", "retina-int", "retina-shift", "retina-noise"])
def see(request: pytest.FixtureRequest) -> See:
    """How a shipped rule reconstructs, its state as hardware has it if the rule is of integers."""
    rule = load_rule(request.param)
    method = reconstruct if isinstance(rule, Rule) else reconstruct_by_codes
    return partial(method, rule)


@pytest.fixture(scope="module")
def road() -> np.ndarray:
    """A square of the embedded clip."""
    return embedded_clip().frames[:, 32:96, 32:96]


def forth_and_back(frames: np.ndarray, count: int) -> np.ndarray:
    period = 2 * len(frames) - 2
    index = np.arange(count) % period
    return frames[np.minimum(index, period - index)]


def fixed_baseline(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return baselines.reconstruct(baselines.BASELINES["normalized-convolution"], mask, mask * frames)


def mean_psnr(frames: np.ndarray, estimates: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(frames - estimates).mean()))


@pytest.mark.parametrize("density", [0.005, 0.01, 0.02, 0.05, 0.1, 0.2])
def test_beats_the_fixed_baseline_at_every_density(see: See, density: float) -> None:
    frames = embedded_clip().frames
    mask = sample_mask(frames.shape, density, 0)
    ours = psnr(frames, see(frames, mask))
    assert ours > psnr(frames, fixed_baseline(frames, mask))


def test_error_after_2000_frames_is_no_higher_than_after_200(see: See, road: np.ndarray) -> None:
    # Whole periods, so that both show the same frames.
    period = 2 * len(road) - 2
    frames = forth_and_back(road, 9 * period)
    assert len(frames) > 2000
    estimates = see(frames, sample_mask(frames.shape, 0.01, 0))
    early, late = slice(200, 200 + period), slice(len(frames) - period, None)
    assert mean_psnr(frames[late], estimates[late]) >= mean_psnr(frames[early], estimates[early])


# A sample is held for 256 frames at most: so long it may take until all that is wrong is forgotten.


def test_a_scene_cut_is_recovered_from(see: See, road: np.ndarray) -> None:
    before, after = forth_and_back(1 - road[:, ::-1, ::-1], 150), forth_and_back(road, 400)
    frames = np.concatenate([before, after])
    mask = sample_mask(frames.shape, 0.01, 0)
    fresh = see(after, mask[150:])[260:]
    cut = see(frames, mask)[150 + 260 :]
    assert mean_psnr(after[260:], cut) > mean_psnr(after[260:], fresh) - 0.5


def test_an_occlusion_is_recovered_from(see: See, road: np.ndarray) -> None:
    frames = forth_and_back(road, 560)
    hidden = frames.copy()
    hidden[120:160, 16:48, 16:48] = 0
    mask = sample_mask(frames.shape, 0.01, 0)
    inside = np.s_[160 + 260 :, 16:48, 16:48]
    never = see(frames, mask)[inside]
    after = see(hidden, mask)[inside]
    assert mean_psnr(frames[inside], after) > mean_psnr(frames[inside], never) - 0.5


def test_200_frames_without_a_sample_are_recovered_from(see: See, road: np.ndarray) -> None:
    frames = forth_and_back(road, 700)
    mask = sample_mask(frames.shape, 0.01, 0)
    dark = mask.copy()
    dark[150:350] = False
    later = slice(350 + 200, None)
    seen = see(frames, mask)[later]
    after = see(frames, dark)[later]
    assert mean_psnr(frames[later], after) > mean_psnr(frames[later], seen) - 0.5


@pytest.mark.parametrize("brightness", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_an_even_surface_is_even_at_any_brightness(see: See, brightness: float) -> None:
    frames = np.full((120, 32, 32), brightness, np.float32)
    curve = psnr_curve(frames, see(frames, sample_mask(frames.shape, 0.01, 0)))
    assert curve[60:].min() > 30


@pytest.mark.parametrize(("photons", "lead"), [(10, 0.8), (30, 1), (100, 1)])
def test_a_rule_trained_with_noise_beats_one_that_was_not(photons: float, lead: float) -> None:
    clip = embedded_clip()
    shown = Shown.by_protocol(clip, 0.01, 0, Sensor(photons=photons))
    trained, other = (
        psnr(clip.frames, reconstruct(rule, shown.readings, shown.mask))
        for rule in (Rule.load(rule_path(name)) for name in ("retina-noise", "retina"))
    )
    assert trained > other + lead
    assert trained > psnr(clip.frames, fixed_baseline(shown.readings, shown.mask))


def test_trained_on_one_video_it_beats_the_fixed_baseline_on_others() -> None:
    # A video in which some things stand still and some move: one in which nothing moves teaches the
    # rule to hold its samples for ever.
    torch.manual_seed(0)
    rule = Rule(RuleConfig(channels=4, hidden=10, steps_per_frame=8, trace_bits=11))
    start_as_filter(rule)
    options = TrainOptions(iterations=150, batch=8, crop=48, learning_rate=3e-4, loss="log-dense")
    train(rule, synthetic_clips(1, 120, 128, seed=7, first=3), options)
    others = [clip.frames for clip in synthetic_clips(6, 100, 96, seed=5)]
    others.append(embedded_clip().frames[:, 16:112, 16:112])
    margins = []
    for frames in others:
        mask = sample_mask(frames.shape, 0.01, 0)
        ours = psnr(frames, reconstruct(rule, frames, mask))
        margins.append(ours - psnr(frames, fixed_baseline(frames, mask)))
    assert np.mean(margins) > 0
    # The start has as much in the mean, but all of it on three of the seven.
    assert np.sum(np.array(margins) > 0) >= 5
    assert min(margins) > -0.3
