import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from scotopia.graph.errors import InputError
from scotopia.model.options import TrainOptions
from scotopia.model.sensor import Sensor
from scotopia.model.video import Clip
from scotopia.model.videos import DRIFT_FRAMES, Chunk, Videos, _Flutter, _Shot, _weaken

NOISE = Clip("noise", np.random.default_rng(0).random((10, 14, 12), dtype=np.float32))
#: Without anything that interrupts a video.
CALM = TrainOptions(
    batch=6, crop=8, chunk=3, densities=(0.3, 0.3, 0.3), restart=0, drift=0, cut=0, blackout=0
)
SENSOR = Sensor(photons=20, read_noise=2, dead=0.1, gain_mismatch=0.1)


def chunks(count: int, clip: Clip = NOISE, **fields: object) -> list[Chunk]:
    videos = Videos([clip], dataclasses.replace(CALM, **fields))  # type: ignore[arg-type]
    return [videos.next_chunk() for _ in range(count)]


def tensors(chunk: Chunk) -> list[Tensor]:
    return [chunk.frames, chunk.samples, chunk.valids]


@pytest.mark.parametrize("sensor", [None, SENSOR])
def test_chunks_share_their_last_and_first_frame(sensor: Sensor | None) -> None:
    played = chunks(9, sensor=sensor, sensor_share=0.5 if sensor else 0)
    assert played[0].frames.shape == (6, 3, 1, 8, 8)
    assert played[0].samples.shape == played[0].valids.shape == (6, 4, 1, 8, 8)
    assert [chunk.new for chunk in played] == [[*range(6)], *[[]] * 8]
    for now, then in pairwise(played):
        arrived = now.valids[:, -1] > 0
        assert torch.equal(arrived, then.valids[:, 0] > 0)
        assert torch.equal(now.samples[:, -1][arrived], then.samples[:, 0][arrived])


@pytest.mark.parametrize("stop", [1, 7, 20])
def test_videos_go_on_from_three_numbers_each(stop: int) -> None:
    options = dataclasses.replace(
        CALM, restart=0.2, cut=0.3, blackout=0.3, drift=0.5, sensor=SENSOR, sensor_share=0.5
    )
    through, stopped = Videos([NOISE], options), Videos([NOISE], options)
    for _ in range(stop):
        through.next_chunk()
        stopped.next_chunk()
    resumed = Videos([NOISE], options)
    resumed.restore(stopped.iteration, stopped.slots)
    for _ in range(6):
        expected, found = through.next_chunk(), resumed.next_chunk()
        assert all(map(torch.equal, tensors(expected), tensors(found)))
        assert expected.new == found.new
        assert torch.equal(
            torch.rand(9, generator=through.fire_generator()),
            torch.rand(9, generator=resumed.fire_generator()),
        )


def test_seeds_and_places_and_chunks_differ() -> None:
    first, second = chunks(2)
    (other,) = chunks(1, seed=1)
    assert not torch.equal(first.frames, other.frames)
    assert not torch.equal(first.valids, other.valids)
    assert not torch.equal(first.valids, second.valids)
    assert len({frames.numpy().tobytes() for frames in first.frames}) == 6


def test_every_video_is_replaced_when_restart_is_certain() -> None:
    assert [chunk.new for chunk in chunks(3, restart=1)] == [[*range(6)]] * 3


def test_videos_live_as_long_as_restart_says() -> None:
    videos = Videos([NOISE], dataclasses.replace(CALM, batch=20, crop=1, restart=0.1))
    count = sum(len(videos.next_chunk().new) for _ in range(51)) - 20
    # 1,000 chances: within five standard deviations
    assert count == pytest.approx(100, abs=5 * math.sqrt(1000 * 0.1 * 0.9))


def test_a_cut_changes_the_scene_but_is_no_new_video() -> None:
    played = chunks(4, cut=1)
    assert [chunk.new for chunk in played[1:]] == [[], [], []]
    for now, then in pairwise(played):
        # What the gradient looks ahead at is the old scene's next frame.
        assert not torch.equal(now.samples[:, -1], then.samples[:, 0])


def test_a_shot_begins_at_its_cut() -> None:
    videos = Videos([NOISE], dataclasses.replace(CALM, cut=1, drift=1))
    for _ in range(3):
        begin = torch.from_numpy(np.stack([shot.play(0, 3) for shot in videos._shots]))
        assert torch.equal(videos.next_chunk().frames[:, :, 0], begin)


def test_nothing_arrives_in_a_blackout_nor_is_seen_ahead() -> None:
    first, second = chunks(2, blackout=1)
    assert first.valids[:, :-1].sum() > 0  # a video does not begin with one
    assert first.valids[:, -1].sum() == second.valids.sum() == 0


def test_videos_keep_to_their_range_and_density() -> None:
    (chunk,) = chunks(1, batch=32)
    assert chunk.frames.min() >= 0 and chunk.frames.max() <= 1
    # 8,192 draws: within five standard deviations
    assert chunk.valids.mean().item() == pytest.approx(0.3, abs=5 * math.sqrt(0.3 * 0.7 / 8192))


def test_without_a_sensor_samples_are_the_scene() -> None:
    (chunk,) = chunks(1)
    assert torch.equal(chunk.samples[:, :-1], chunk.frames)


def test_a_sensor_changes_what_arrives_and_not_what_is_learned() -> None:
    (clean,), (noisy,) = chunks(1), chunks(1, sensor=SENSOR, sensor_share=1)
    assert torch.equal(noisy.frames, clean.frames)
    assert torch.equal(noisy.valids, clean.valids)
    differs = noisy.samples != clean.samples
    assert differs[noisy.valids > 0].float().mean() > 0.8  # but some that are black or white
    assert not differs[noisy.valids == 0].any()


def test_share_of_the_videos_that_a_sensor_sees() -> None:
    (clean,) = chunks(1, batch=200)
    (noisy,) = chunks(1, batch=200, sensor=SENSOR, sensor_share=0.25)
    count = (noisy.samples != clean.samples).flatten(1).any(1).sum().item()
    assert count == pytest.approx(50, abs=5 * math.sqrt(200 * 0.25 * 0.75))


def test_a_weaker_sensor_has_a_share_of_the_flaws() -> None:
    half = Sensor(photons=40, read_noise=1, dead=0.05, gain_mismatch=0.05)
    assert _weaken(SENSOR, 0.5) == half
    assert _weaken(SENSOR, 0).photons == 1e9
    assert _weaken(Sensor(stuck=0.2), 0.5) == Sensor(stuck=0.1)


def ramp(*looks: tuple[float, float]) -> _Shot:
    """A shot of three frames, of 0.5, 0.75 and 1, at stride 1."""
    view: NDArray[np.float32] = np.array([0.5, 0.75, 1], np.float32)[:, None, None]
    return _Shot(view, *looks, stride=1, position=0)


def test_clips_play_forth_and_back() -> None:
    shot = ramp((1, 0.5), (1, 0.5))
    assert shot.play(0, 7).flatten().tolist() == [0.5, 0.75, 1, 0.75, 0.5, 0.75, 1]
    assert shot.play(3, 2).flatten().tolist() == [0.75, 0.5]
    still = dataclasses.replace(shot, stride=0, position=1)
    assert still.play(5, 3).flatten().tolist() == [0.75] * 3


def test_drift_goes_from_one_look_to_another_and_stays() -> None:
    shot = dataclasses.replace(ramp((0.5, 0.5), (1, 0.25)), stride=0, position=2)
    found = shot.play(0, DRIFT_FRAMES + 3).flatten()
    assert found[0] == 0.75
    assert found[DRIFT_FRAMES // 2] == pytest.approx(0.5 * 0.75 + 0.375)
    assert found[DRIFT_FRAMES:].tolist() == [0.75] * 3
    assert np.abs(np.diff(found)).max() < 0.01


def test_light_that_flutters_turns_dark_and_bright() -> None:
    flutter = _Flutter(amplitude=0.1, turn=np.pi, phase=np.pi / 2)
    shot = dataclasses.replace(ramp((1, 0.5), (1, 0.5)), stride=0, flutter=flutter)
    assert shot.play(0, 4).flatten() == pytest.approx([0.55, 0.45, 0.55, 0.45])
    assert shot.play(3, 2).flatten() == pytest.approx([0.45, 0.55])


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_the_shots_whose_light_flutters(share: float) -> None:
    options = dataclasses.replace(CALM, batch=200, flutter=share)
    shots = Videos([NOISE], options)._shots
    count = sum(shot.flutter.amplitude > 0 for shot in shots)
    assert count == pytest.approx(200 * share, abs=5 * math.sqrt(200 * share * (1 - share)))
    assert all(shot.flutter.amplitude <= 0.08 for shot in shots)


@pytest.mark.parametrize("least", [0.05, 0.3, 1.0])
def test_contrasts_are_from_the_least_to_1_3(least: float) -> None:
    options = dataclasses.replace(CALM, batch=200, contrast=least)
    found = [abs(shot.begin[0]) for shot in Videos([NOISE], options)._shots]
    assert least <= min(found) < 1.1 * least
    assert 1.2 < max(found) <= 1.3


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_the_shots_from_real_clips(share: float) -> None:
    options = dataclasses.replace(CALM, batch=200, crop=1, chunk=1, real_share=share)
    real, synthetic = (Clip(name, np.zeros((9, 2, 2), np.float32)) for name in ("real", "other"))
    videos = Videos([real], options, [synthetic])
    count = sum(np.shares_memory(shot.view, real.frames) for shot in videos._shots)
    assert count == pytest.approx(200 * share, abs=5 * math.sqrt(200 * share * (1 - share)))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_the_real_shots_from_clips_that_move(share: float) -> None:
    options = dataclasses.replace(CALM, batch=200, crop=1, chunk=1, moving_share=share)
    moving, still = np.random.default_rng(0).random((2, 12, 2, 2), dtype=np.float32)
    still[:] = 0
    videos = Videos([Clip("a", moving), Clip("b", still)], options)
    count = sum(np.shares_memory(shot.view, moving) for shot in videos._shots)
    assert count == pytest.approx(200 * share, abs=5 * math.sqrt(200 * share * (1 - share)))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_the_shots_at_half_or_twice_their_size(share: float) -> None:
    options = dataclasses.replace(CALM, batch=200, crop=2, chunk=1, zoom=share)
    found = [shot.zoom for shot in Videos([NOISE], options)._shots]
    for zoom in (0.5, 2):
        spread = 5 * math.sqrt(200 * share / 2 * (1 - share / 2))
        assert found.count(zoom) == pytest.approx(100 * share, abs=spread)
    assert set(found) <= {0.5, 1, 2}


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_the_shots_that_show_two(share: float) -> None:
    options = dataclasses.replace(CALM, batch=200, blend=share)
    shots = Videos([NOISE], options)._shots
    count = sum(shot.other is not None for shot in shots)
    assert count == pytest.approx(200 * share, abs=5 * math.sqrt(200 * share * (1 - share)))
    assert all(0.25 <= shot.share <= 0.75 for shot in shots if shot.other is not None)


def test_two_shots_are_seen_through_each_other() -> None:
    shot = ramp((1, 0.5), (1, 0.5))
    still = dataclasses.replace(shot, stride=0)
    blend = dataclasses.replace(shot, other=still, share=0.75)
    assert shot.play(0, 4).flatten().tolist() == [0.5, 0.75, 1, 0.75]
    assert still.play(0, 4).flatten().tolist() == [0.5, 0.5, 0.5, 0.5]
    assert blend.play(0, 4).flatten().tolist() == [0.5, 0.6875, 0.875, 0.6875]


def test_half_the_size_is_averaged_and_twice_is_interpolated() -> None:
    square: NDArray[np.float32] = np.array([[[0, 0.2], [0.4, 0.6]]], np.float32)
    half = _Shot(square, (1, 0.5), (1, 0.5), stride=1, position=0, zoom=0.5)
    assert half.play(0, 1) == pytest.approx(0.3)
    twice = dataclasses.replace(half, zoom=2).play(0, 1)[0]
    assert twice[0] == pytest.approx([0, 0.05, 0.15, 0.2])
    assert twice[:, 0] == pytest.approx([0, 0.1, 0.3, 0.4])


def test_zoom_changes_no_other_choice() -> None:
    plain, zoomed = (
        Videos([NOISE], dataclasses.replace(CALM, batch=50, crop=2, zoom=zoom))._shots
        for zoom in (0.0, 1.0)
    )
    for a, b in zip(plain, zoomed, strict=True):
        assert (a.begin, a.end, a.stride, a.position) == (b.begin, b.end, b.stride, b.position)


def test_a_blend_changes_no_other_choice() -> None:
    alone, blended = (
        Videos([NOISE], dataclasses.replace(CALM, batch=50, blend=blend))._shots
        for blend in (0.0, 1.0)
    )
    for a, b in zip(alone, blended, strict=True):
        assert (a.begin, a.end, a.stride, a.position) == (b.begin, b.end, b.stride, b.position)
        assert b.other is not None
        assert b.other.position != b.position or b.other.begin != b.begin


def test_clips_too_small_to_be_halved_are_only_doubled() -> None:
    options = dataclasses.replace(CALM, batch=50, crop=10, zoom=1.0)
    assert {shot.zoom for shot in Videos([NOISE], options)._shots} == {1, 2}


@pytest.mark.parametrize("length", [1, 10, 11])
def test_a_clip_is_trained_on_however_short(length: int) -> None:
    clip = Clip("short", NOISE.frames[:1].repeat(length, 0))
    assert chunks(1, clip)[0].frames.isfinite().all()


def test_densities_are_likeliest_in_the_middle() -> None:
    options = dataclasses.replace(CALM, batch=1000, crop=1, densities=(0.001, 0.1, 1.0))
    found = np.log10([video.density for video in Videos([NOISE], options)._videos])
    assert found.min() > -3 and found.max() < 0
    # A triangle from -3 to 0 with its top at -1: 1, 3 and 2 parts of 6.
    counts, _ = np.histogram(found, [-3, -2, -1, 0])
    assert counts / 1000 == pytest.approx([1 / 6, 1 / 2, 1 / 3], abs=5 * math.sqrt(0.25 / 1000))


def test_no_clips_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        Videos([], CALM)
    assert str(caught.value) == "there are no clips to train on: give at least one"


def test_clip_smaller_than_the_crop_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        Videos([], dataclasses.replace(CALM, crop=13), [NOISE])
    assert str(caught.value) == (
        "clip noise has 12 x 14 pixels, the crop 13: choose a smaller crop"
    )
