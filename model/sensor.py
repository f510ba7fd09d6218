"""What a real sensor reads instead of the scene: photon noise, and pixels that differ."""

import math
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from scotopia.graph.errors import InputError

MAX_PHOTONS = 1e9
"""Brightest mid-gray: its shot noise is far below what float32 resolves."""


@dataclass(frozen=True)
class Sensor:
    """Sensor model (as in EMVA 1288): shot noise, read noise, and fixed pattern noise.

    A pixel of brightness b and gain g collects n photons, Poisson with mean 2 * photons * g * b,
    each of which frees an electron. It reads (n + e) / (2 * photons), e being Gaussian, clipped
    to the converter's range [0, 1]. All defaults together are an ideal sensor, which reads the
    scene itself.

    Attributes
    ----------
    photons : float or None
        Mean photon count of a mid-gray pixel (brightness 0.5) in a frame; a white one collects
        twice as many. Above 0; None for so much light that there is no shot noise.
    read_noise : float
        Standard deviation of e in electrons; needs `photons`, which say how many make white.
    dead, stuck : float
        Shares of the pixels, in [0, 1) and together below 1, that always read 0 and 1: each pixel
        is drawn independently.
    gain_mismatch : float
        Standard deviation of g, in [0, 1]. g is Gaussian of mean 1, not below 0, and the same in
        every frame.

    Raises
    ------
    InputError
        If a field is out of its range.
    """

    photons: float | None = None
    read_noise: float = 0.0
    dead: float = 0.0
    stuck: float = 0.0
    gain_mismatch: float = 0.0

    def __post_init__(self) -> None:
        if self.photons is not None and not 0 < self.photons <= MAX_PHOTONS:  # refuses NaN, too
            raise InputError(
                f"photons {self.photons:g} are not above 0 and up to {MAX_PHOTONS:g}: give 10 for "
                "a dim scene, or none at all for no shot noise"
            )
        if not 0 <= self.read_noise < math.inf:
            raise InputError(
                f"read noise {self.read_noise:g} is not 0 electrons or more and finite: "
                "give 2, for instance"
            )
        if self.read_noise and self.photons is None:
            raise InputError(
                f"read noise {self.read_noise:g} is counted in electrons, which mean nothing "
                "without a photon count: give photons as well"
            )
        for name in ("dead", "stuck"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise InputError(
                    f"share {value:g} of {name} pixels is not in [0, 1): give 0.01 for 1 %"
                )
        if self.dead + self.stuck >= 1:
            raise InputError(
                f"shares {self.dead:g} of dead and {self.stuck:g} of stuck pixels leave none that "
                "works: make their sum less than 1"
            )
        if not 0 <= self.gain_mismatch <= 1:
            raise InputError(
                f"gain mismatch {self.gain_mismatch:g} is not in [0, 1]: give 0.05 for 5 %"
            )

    def __str__(self) -> str:
        return ", ".join(
            f"{entry.name.replace('_', ' ')} {value:g}"
            for entry in fields(self)
            if (value := getattr(self, entry.name)) != entry.default
        )

    @property
    def is_ideal(self) -> bool:
        """Whether readings are the scene itself."""
        return all(getattr(self, entry.name) == entry.default for entry in fields(self))

    def draw_pattern(self, shape: tuple[int, int], rng: np.random.Generator) -> "Pattern":
        """Make one such sensor of `shape` (H, W) pixels: draw what stays fixed over time."""
        gain = np.maximum(0, 1 + self.gain_mismatch * rng.standard_normal(shape))
        defect = rng.random(shape)
        return Pattern(
            self,
            gain=gain.astype(np.float32),
            dead=defect < self.dead,
            stuck=(self.dead <= defect) & (defect < self.dead + self.stuck),
        )

    def expose(self, frames: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """Read a whole clip (T, H, W) by a new sensor of this kind; see `Pattern.expose`."""
        height, width = frames.shape[1:]
        return self.draw_pattern((height, width), rng).expose(frames, rng)


@dataclass(frozen=True, eq=False)
class Pattern:
    """One sensor: what its pixels keep over time.

    Attributes
    ----------
    sensor : Sensor
    gain : array (H, W), float32
        At least 0, about 1.
    dead, stuck : array (H, W), bool
        No pixel is both.
    """

    sensor: Sensor
    gain: NDArray[np.float32] = field(repr=False)
    dead: NDArray[np.bool_] = field(repr=False)
    stuck: NDArray[np.bool_] = field(repr=False)

    def expose(self, frames: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """Read frames.

        A clip may come in pieces: read one after the other by the same pattern and generator, they
        give what the clip as a whole would.

        Parameters
        ----------
        frames : array (T, H, W), float32
            Brightness in [0, 1].
        rng : numpy.random.Generator
            Of the noise, which is new in every frame.

        Returns
        -------
        array (T, H, W), float32
            Readings in [0, 1]; `frames` itself, if the sensor is ideal.
        """
        if self.sensor.is_ideal:
            return frames
        return np.stack([self._read(frame, rng) for frame in frames])

    def _read(self, frame: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        signal = frame * self.gain
        if self.sensor.photons is not None:
            white = 2 * self.sensor.photons
            electrons = rng.poisson(white * signal.astype(np.float64)).astype(np.float64)
            if self.sensor.read_noise:
                electrons += rng.normal(0, self.sensor.read_noise, frame.shape)
            signal = (electrons / white).astype(np.float32)
        reading: NDArray[np.float32] = np.clip(signal, 0, 1)
        reading[self.dead] = 0
        reading[self.stuck] = 1
        return reading
