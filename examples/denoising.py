"""A task of one's own: every pixel of a video arrives, but in a light of ten photons each.

    scotopia train --task examples/denoising.py:Denoising --out denoise.safetensors

A photon counter's reading is as wrong as the square root of what it counts: at ten photons a
mid-grey pixel by a third. A rule sees each frame for two steps and predicts the scene behind it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from scotopia.graph.surroundings import Event
from scotopia.model.float_rule import FloatRule
from scotopia.model.front import trace
from scotopia.model.options import LoopOptions
from scotopia.model.rule import to_pixel, to_state
from scotopia.model.synthetic import synthetic_clips
from scotopia.model.tasks import Batch, Task, psnr
from scotopia.model.trainable import TrainableGraph

CHANNELS, HIDDEN, STEPS = 6, 16, 2


class Denoiser(nn.Module):
    """Channel 0 predicts the pixel, from -1 for black to 1 for white; the others remember."""

    channels = CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Conv2d(CHANNELS + 1, HIDDEN, 3)
        self.act = nn.Conv2d(HIDDEN, CHANNELS, 1)
        nn.init.zeros_(self.act.weight)

    def forward(self, state: Tensor, sample: Tensor) -> Tensor:
        """Do one step, of (B, C, H, W) and (B, 1, H, W)."""
        seen = F.pad(torch.cat([state, sample], 1), (1, 1, 1, 1), mode="replicate")
        change: Tensor = self.act(F.relu(self.see(seen)))
        return (state + change).clamp(-1, 1)


class Denoising(Task):
    """Predict frames by their noisy readings.

    Parameters
    ----------
    photons
        Of a mid-grey pixel in a frame.
    frames, crop
        Frames of a batch, and the side of the squares that are cut out of them.
    clips
        Synthetic clips to learn from; one more is there to be scored on.
    """

    defaults = LoopOptions(iterations=2000, batch=8, learning_rate=2e-3, average=0.99)

    def __init__(
        self, photons: float = 10.0, frames: int = 8, crop: int = 32, clips: int = 16
    ) -> None:
        self.photons, self.frames, self.crop = photons, frames, crop
        *shown, kept = synthetic_clips(clips + 1, 40, 64, 0)
        self.clips = [clip.frames for clip in shown]
        self.kept = kept.frames

    def start(self) -> FloatRule:
        """Return a rule that predicts mid-grey."""
        traced = trace(Denoiser(), inputs={"sample": 1}, channels=CHANNELS)
        return FloatRule(traced.graph, STEPS, (Event("sample"),), trained=traced.trained())

    def batch(self, iteration: int, rng: np.random.Generator) -> Batch:
        """Cut squares out of clips, and let photons arrive."""
        cut = []
        for _ in range(self.options.batch):
            clip = self.clips[rng.integers(len(self.clips))]
            t, top, left = (
                int(rng.integers(length - size + 1))
                for length, size in zip(
                    clip.shape, (self.frames, self.crop, self.crop), strict=True
                )
            )
            cut.append(clip[t : t + self.frames, top : top + self.crop, left : left + self.crop])
        scene = np.stack(cut)
        return Batch(
            self.initial(self.crop, self.crop),
            {"sample": to_state(torch.from_numpy(self.read(scene, rng)))},
            frames=self.frames,
            goal=to_state(torch.from_numpy(scene)),
        )

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Squared error of the predictions."""
        error: Tensor = outputs[:, :, 0] - batch.goal
        return error.square().mean()

    def score(self, rule: TrainableGraph) -> float:
        """PSNR in dB of a clip that was not learned from, but for its first frames."""
        readings = torch.from_numpy(self.read(self.kept, np.random.default_rng(0)))
        with torch.no_grad():
            start = self.initial(*self.kept.shape[1:])[:1]
            given = {"sample": to_state(readings)[None]}
            outputs, _ = rule.unroll(start, given, frames=len(self.kept))
        found = to_pixel(outputs[0, :, 0]).numpy()
        return psnr(float(np.square(found - self.kept)[self.frames :].mean()))

    def read(self, scene: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """Count photons: brightness in [0, 1], noisy."""
        counted = rng.poisson(2 * self.photons * scene) / (2 * self.photons)
        return np.minimum(counted, 1).astype(np.float32)
