"""An endless, augmented batch of videos to train on.

Nothing is drawn from a generator that lives on: every choice is made by a generator of its own,
seeded by what is chosen. So a checkpoint holds three small numbers for each video, however far the
training has come.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from scotopia.graph.errors import InputError

from .options import MOVING, TrainOptions
from .sampling import log_uniform
from .score import MOTION_LAG, motion
from .sensor import MAX_PHOTONS, Pattern, Sensor
from .video import Clip

#: Largest contrast of a shot, as a share of its clip's.
MAX_CONTRAST = 1.3

#: Least and largest amplitude of light that flutters, as a share of its mean.
FLUTTER = 0.005, 0.08

#: Least and largest share of the first of two shots that are seen through each other.
BLEND = 0.25, 0.75

#: Frames in which a drifting shot goes from one brightness and contrast to another.
DRIFT_FRAMES = 200

# First word of a seed: what is drawn. Streams of one purpose have seeds of one length, because
# NumPy takes [1, 2] and [1, 2, 0] for the same seed.
_VIDEO, _SHOT, _EVENT, _NOISE, _MASK, _FIRE = range(6)


@dataclass
class Slot:
    """How far one of the videos has come: all that must be kept of it.

    Attributes
    ----------
    generation
        Videos that this one follows in its place of the batch.
    age
        Chunks since the video began.
    shot
        Its age at its last cut.
    """

    generation: int = 0
    age: int = 0
    shot: int = 0


@dataclass(frozen=True)
class Chunk:
    """What one optimizer step sees, brightness in [0, 1].

    Attributes
    ----------
    frames
        (B, T, 1, H, W) the scene.
    samples
        (B, T + 1, 1, H, W) what the sensor reads. The last frame is the first of the next chunk,
        unless the video ends or is cut there: the observed loss looks one frame ahead.
    valids
        (B, T + 1, 1, H, W) 1 where a pixel arrives, else 0.
    new
        Videos that begin with this chunk.
    """

    frames: Tensor
    samples: Tensor
    valids: Tensor
    new: list[int]


class Videos:
    """An endless batch of videos.

    Each is a sequence of shots, seen through one sensor. A shot is a random crop of a random clip,
    turned and mirrored, its size, brightness and contrast changed, its light steady or not, played
    forth and back at its own speed. One in ten stands still. Two may be seen through each other.

    Parameters
    ----------
    clips, synthetic
        At least one in all; `options.real_share` says how often a shot is one of `clips`.

    Raises
    ------
    InputError
        If there are no clips, or one is smaller than the crop.
    """

    def __init__(
        self, clips: Sequence[Clip], options: TrainOptions, synthetic: Sequence[Clip] = ()
    ) -> None:
        for clip in (*clips, *synthetic):
            check_crop(clip.name, clip.frames.shape, options.crop)
        moving: list[NDArray[np.float32]] = []
        quiet: list[NDArray[np.float32]] = []
        for clip in clips:
            much = len(clip.frames) > MOTION_LAG and motion(clip.frames) >= MOVING
            (moving if much else quiet).append(clip.frames)
        self._moving, self._quiet = moving or quiet, quiet or moving
        self._synthetic = [clip.frames for clip in synthetic]
        if not self._moving and not self._synthetic:
            raise InputError("there are no clips to train on: give at least one")
        self.options = options
        self.restore(0, [Slot() for _ in range(options.batch)])

    def restore(self, iteration: int, slots: Sequence[Slot]) -> None:
        """Go on from where other such videos were after `iteration` chunks."""
        self.iteration = iteration
        self.slots = [dataclasses.replace(slot) for slot in slots]
        self._videos = [self._video(place, slot) for place, slot in enumerate(self.slots)]
        self._shots = [self._shot(place, slot) for place, slot in enumerate(self.slots)]

    def next_chunk(self) -> Chunk:
        """Play each video for a chunk, and let some of them end or be cut behind it."""
        length, crop = self.options.chunk, self.options.crop
        shape = (len(self.slots), length + 1, crop, crop)
        frames, samples, valids = (np.empty(shape, np.float32) for _ in range(3))
        new = [place for place, slot in enumerate(self.slots) if slot.age == 0]
        # The frame that both chunks hold shows the same pixels in both.
        chances = self._chances(self.iteration, length), self._chances(self.iteration + 1, 1)
        for place, slot in enumerate(self.slots):
            video, shot = self._videos[place], self._shots[place]
            frames[place] = shot.play((slot.age - slot.shot) * length, length + 1)
            _, dark = self._events(place, slot)
            ahead = dataclasses.replace(slot, age=slot.age + 1)
            cut, dark_ahead = self._events(place, ahead)
            valids[place, :-1] = chances[0][:, place] < (0 if dark else video.density)
            valids[place, -1] = chances[1][0, place] < (0 if dark_ahead else video.density)
            samples[place] = self._expose(place, slot, frames[place], valids[place])
            if ahead.age == video.life:
                ahead = Slot(slot.generation + 1)
                self._videos[place] = self._video(place, ahead)
            if cut:
                ahead.shot = ahead.age
            if ahead.shot == ahead.age:
                self._shots[place] = self._shot(place, ahead)
            self.slots[place] = ahead
        self.iteration += 1
        seen, read, shown = (
            torch.from_numpy(array)[:, :, None] for array in (frames, samples, valids)
        )
        return Chunk(seen[:, :-1], read, shown, new)

    def fire_generator(self) -> torch.Generator:
        """Make the generator of which cells fire in the chunk that `next_chunk` returned last."""
        seed = self._rng(_FIRE, self.iteration).integers(2**63)
        return torch.Generator().manual_seed(int(seed))

    def _rng(self, purpose: int, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([purpose, self.options.seed, *numbers])

    def _chances(self, iteration: int, frames: int) -> NDArray[np.float32]:
        crop = self.options.crop
        shape = (frames, len(self.slots), crop, crop)
        return self._rng(_MASK, iteration).random(shape, np.float32)

    def _events(self, place: int, slot: Slot) -> tuple[bool, bool]:
        """Whether a chunk begins with a cut, and whether it is dark; a video's first is neither."""
        if slot.age == 0:
            return False, False
        cut, dark = self._rng(_EVENT, place, slot.generation, slot.age).random(2)
        return cut < self.options.cut, dark < self.options.blackout

    def _expose(
        self,
        place: int,
        slot: Slot,
        frames: NDArray[np.float32],
        valids: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Read the pixels that arrive: noise is dear, and they are few."""
        pattern = self._videos[place].pattern
        if pattern is None:
            return frames
        now, then = (
            self._rng(_NOISE, place, slot.generation, age) for age in (slot.age, slot.age + 1)
        )
        readings = frames.copy()
        for t, (frame, arrived) in enumerate(zip(frames, valids > 0, strict=True)):
            row = Pattern(
                pattern.sensor,
                gain=pattern.gain[arrived][None],
                dead=pattern.dead[arrived][None],
                stuck=pattern.stuck[arrived][None],
            )
            # The frame ahead is read by the generator that will read it again.
            rng = now if t < self.options.chunk else then
            readings[t, arrived] = row.expose(frame[arrived][None, None], rng)[0, 0]
        return readings

    def _video(self, place: int, slot: Slot) -> "_Video":
        rng, options = self._rng(_VIDEO, place, slot.generation), self.options
        life = int(rng.geometric(options.restart)) if options.restart else sys.maxsize
        low, likeliest, high = map(math.log, options.densities)
        density = math.exp(rng.triangular(low, likeliest, high) if low < high else low)
        pattern = None
        if options.sensor is not None and rng.random() < options.sensor_share:
            sensor = _weaken(options.sensor, rng.random())
            pattern = sensor.draw_pattern((options.crop, options.crop), rng)
        return _Video(life, density, pattern)

    def _shot(self, place: int, slot: Slot) -> "_Shot":
        rng = self._rng(_SHOT, place, slot.generation, slot.shot)
        shot = self._draw_shot(rng)
        if rng.random() >= self.options.blend:
            return shot
        other = self._draw_shot(rng)
        return dataclasses.replace(shot, other=other, share=rng.uniform(*BLEND))

    def _draw_shot(self, rng: np.random.Generator) -> "_Shot":
        options = self.options
        group = self._moving if rng.random() < options.moving_share else self._quiet
        if self._synthetic and (not group or rng.random() >= options.real_share):
            group = self._synthetic
        clip = group[rng.integers(len(group))]
        top, left = (int(rng.integers(side - options.crop + 1)) for side in clip.shape[1:])
        turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
        sign = -1 if rng.random() < 0.1 else 1
        begin = end = self._draw_look(rng, sign)
        if rng.random() < options.drift:
            end = self._draw_look(rng, sign)
        stride = int(rng.choice([0, 1, 2, 4], p=[0.1, 0.6, 0.2, 0.1]))  # 0: a still
        position = int(rng.integers(2 * len(clip)))
        size = options.crop
        if rng.random() < options.zoom:
            double = 2 * size if min(clip.shape[1:]) >= 2 * size else size
            size = size // 2 if rng.random() < 0.5 else double
            top, left = (int(rng.integers(side - size + 1)) for side in clip.shape[1:])
        view = clip[:, top : top + size, left : left + size]
        view = np.rot90(view, turns, (1, 2))
        view = view[:, :, ::-1] if mirrored else view
        flutter = _Flutter()
        if rng.random() < options.flutter:
            turn = rng.uniform(0.1, np.pi)  # up to light and dark in turn
            flutter = _Flutter(log_uniform(rng, *FLUTTER), turn, rng.uniform(0, 2 * np.pi))
        return _Shot(view, begin, end, stride, position, options.crop / size, flutter)

    def _draw_look(self, rng: np.random.Generator, sign: int) -> tuple[float, float]:
        """Draw a contrast, and a brightness that keeps most of the range inside [0, 1]."""
        contrast = log_uniform(rng, self.options.contrast, MAX_CONTRAST)
        room = abs(1 - contrast) / 2
        return sign * contrast, rng.uniform(0.5 - room, 0.5 + room)


def check_crop(name: str, shape: tuple[int, ...], crop: int) -> None:
    """Raise InputError if a clip's frames, (T, H, W), are smaller than the crop."""
    _, height, width = shape
    if min(height, width) < crop:
        raise InputError(
            f"clip {name} has {width} x {height} pixels, the crop {crop}: choose a smaller crop"
        )


@dataclass(frozen=True)
class _Video:
    life: int  # chunks
    density: float
    pattern: Pattern | None


@dataclass(frozen=True)
class _Flutter:
    """A light whose strength is a sine of time."""

    amplitude: float = 0.0  # of its mean
    turn: float = 0.0  # radians a frame
    phase: float = 0.0

    def light(self, times: NDArray[np.int64]) -> NDArray[np.float32]:
        """Tell how strong it is, about 1."""
        wave = np.sin(self.phase + self.turn * times)
        light: NDArray[np.float32] = (1 + self.amplitude * wave).astype(np.float32)
        return light


@dataclass(frozen=True)
class _Shot:
    view: NDArray[np.float32]  # T, H, W of a clip: nothing is copied before it is played
    begin: tuple[float, float]  # contrast and brightness
    end: tuple[float, float]
    stride: int
    position: int
    zoom: float = 1.0  # 1/2, 1 or 2
    flutter: _Flutter = _Flutter()
    other: "_Shot | None" = None  # seen through this one
    share: float = 1.0  # of this one

    def play(self, first: int, count: int) -> NDArray[np.float32]:
        """Return frames `first` to `first + count`, the clip running forth and back."""
        times = np.arange(first, first + count)
        period = max(1, 2 * len(self.view) - 2)
        index = (self.position + self.stride * times) % period
        frames = _resize(self.view[np.minimum(index, period - index)], self.zoom)  # a copy
        progress = np.minimum(times / DRIFT_FRAMES, 1).astype(np.float32)[:, None, None]
        contrast, brightness = (
            np.float32(a) + np.float32(b - a) * progress
            for a, b in zip(self.begin, self.end, strict=True)
        )
        frames -= 0.5
        frames *= contrast
        frames += brightness
        frames *= self.flutter.light(times)[:, None, None]
        np.clip(frames, 0, 1, out=frames)
        if self.other is not None:
            frames *= np.float32(self.share)
            frames += np.float32(1 - self.share) * self.other.play(first, count)
        return frames


def _resize(frames: NDArray[np.float32], zoom: float) -> NDArray[np.float32]:
    """Show frames at half their size, averaged, at twice, interpolated, or as they are."""
    if zoom == 1:
        return frames
    seen = torch.from_numpy(frames)[:, None]
    if zoom < 1:
        return F.avg_pool2d(seen, 2)[:, 0].numpy()
    return F.interpolate(seen, scale_factor=2, mode="bilinear")[:, 0].numpy()


def _weaken(sensor: Sensor, share: float) -> Sensor:
    """Make the sensor whose flaws are a share, in [0, 1], of this one's."""
    photons = sensor.photons
    if photons is not None:  # fewer photons, more noise
        photons = min(photons / max(share, 1e-9), MAX_PHOTONS)
    return Sensor(
        photons,
        share * sensor.read_noise,
        share * sensor.dead,
        share * sensor.stuck,
        share * sensor.gain_mismatch,
    )
