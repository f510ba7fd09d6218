"""Training by truncated backpropagation through time, with the state carried across chunks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from .errors import InputError
from .rule import Rule, to_state
from .video import Clip

#: Loss of one frame: (prediction, frame, next_sample, next_valid), each (B, 1, H, W) in the
#: state's range, to a scalar. `next_sample` is what arrives in the following frame.
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def dense_loss(prediction: Tensor, frame: Tensor, _sample: Tensor, _valid: Tensor) -> Tensor:
    """Mean squared error against the whole frame: needs the ground truth."""
    return (prediction - frame).square().mean()


def log_dense_loss(prediction: Tensor, frame: Tensor, _sample: Tensor, _valid: Tensor) -> Tensor:
    """Logarithm of each video's mean squared error: what PSNR averages over clips.

    A dark or low-contrast video counts as much as a bright one. The floor, 33 dB, keeps
    videos that are nearly perfect from ruling the gradient.
    """
    return (prediction - frame).square().mean((1, 2, 3)).add(2e-3).log().mean()


def observed_loss(prediction: Tensor, _frame: Tensor, sample: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error against the pixels that arrive next: needs no ground truth.

    A cell predicts, then its pixel arrives; all that is learned from is the difference.
    """
    return (valid * (prediction - sample).square()).sum() / valid.sum().clamp(min=1)


LOSSES: dict[str, Loss] = {
    "dense": dense_loss,
    "log-dense": log_dense_loss,
    "observed": observed_loss,
}


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes
    ----------
    iterations
        Optimizer steps, each over one chunk.
    batch
        Videos that run side by side.
    crop
        Side of the square cut out of each video, in pixels.
    chunk
        Frames between two truncations of the gradient.
    learning_rate
        Peak of a schedule that warms up for 2 % and falls as a cosine to 1 %.
    densities
        Lowest and highest share of pixels shown, in (0, 1]; each video draws its own, uniformly in
        the logarithm.
    restart
        Chance that a video is replaced, its state set to zero, after a chunk.
    average
        Decay per iteration of the running average of the weights that training ends with; 0 for
        the last weights. A rule runs for thousands of steps, so that weights which are right only
        on the average of a few iterations drift.
    loss
        A name out of `LOSSES`, or any function of `Loss`'s form.
    seed
        Of the videos and the samples; the weights are the caller's.
    """

    iterations: int = 3600
    batch: int = 8
    crop: int = 64
    chunk: int = 8
    learning_rate: float = 2e-3
    densities: tuple[float, float] = (0.005, 0.04)
    restart: float = 0.08
    average: float = 0.998
    loss: str | Loss = "dense"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "crop", "chunk"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is below 1: choose at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(
                f"learning_rate {self.learning_rate:g} is not above 0 and finite: choose 0.002"
            )
        low, high = self.densities
        if not 0 < low <= high <= 1:
            raise InputError(f"densities {low} to {high} are outside (0, 1]: choose 0.005 to 0.04")
        if isinstance(self.loss, str) and self.loss not in LOSSES:
            raise InputError(f"loss {self.loss!r} is unknown: choose one of {', '.join(LOSSES)}")


class Videos:
    """An endless, augmented batch of videos.

    Each is a random crop of a random clip, turned and mirrored, its brightness and contrast
    changed, played forth and back at its own speed, until it is replaced.
    """

    def __init__(self, clips: Sequence[Clip], options: TrainOptions) -> None:
        self.clips = [torch.from_numpy(clip.frames) for clip in clips]
        for clip in clips:
            if min(clip.frames.shape[1:]) < options.crop:
                raise InputError(
                    f"clip {clip.name} has {clip.frames.shape[2]} x {clip.frames.shape[1]} pixels, "
                    f"the crop {options.crop}: choose a smaller crop"
                )
        self.options = options
        self.rng = np.random.default_rng(options.seed)
        self.videos = [self._draw() for _ in range(options.batch)]
        self.next_mask: Tensor | None = None

    def _draw(self) -> "_Video":
        rng, options = self.rng, self.options
        clip = self.clips[rng.integers(len(self.clips))]
        y, x = (rng.integers(side - options.crop + 1) for side in clip.shape[1:])
        view = clip[:, y : y + options.crop, x : x + options.crop]
        view = torch.rot90(view, int(rng.integers(4)), (1, 2))
        if rng.random() < 0.5:
            view = view.flip(2)
        contrast = math.exp(rng.uniform(math.log(0.3), math.log(1.3)))
        if rng.random() < 0.1:
            contrast = -contrast
        # Any brightness that keeps most of the video's range inside [0, 1].
        middle = rng.uniform(0.5 - abs(1 - abs(contrast)) / 2, 0.5 + abs(1 - abs(contrast)) / 2)
        view = ((view - 0.5) * contrast + middle).clamp(0, 1)
        stride = int(rng.choice([0, 1, 2], p=[0.2, 0.65, 0.15]))  # 0: a still
        low, high = map(math.log, options.densities)
        density = math.exp(rng.uniform(low, high))
        return _Video(view, int(rng.integers(2 * len(view))), stride, density)

    def next_chunk(self) -> tuple[Tensor, Tensor, list[int]]:
        """Frames (T + 1, B, 1, H, W) in [0, 1], masks alike, and which videos are new.

        The last frame is the first of the next chunk: the observed loss looks one frame ahead.
        """
        frames, densities, new = [], [], []
        for index in range(len(self.videos)):
            if self.rng.random() < self.options.restart:
                self.videos[index] = self._draw()
                new.append(index)
            frames.append(self.videos[index].play(self.options.chunk))
            densities.append(self.videos[index].density)
        stacked = torch.stack(frames, 1)[:, :, None]
        uniform = torch.from_numpy(self.rng.random(stacked.shape, dtype=np.float32))
        masks = (uniform < torch.tensor(densities)[:, None, None, None]).float()
        if self.next_mask is not None:
            masks[0] = self.next_mask  # the frame that both chunks hold shows the same pixels
        self.next_mask = masks[-1]
        return stacked, masks, new


@dataclass
class _Video:
    view: Tensor  # T, H, W
    position: int
    stride: int
    density: float

    def play(self, chunk: int) -> Tensor:
        """Return `chunk` frames and the one after them, forth and back."""
        period = max(1, 2 * len(self.view) - 2)
        index = (self.position + self.stride * torch.arange(chunk + 1)) % period
        self.position += self.stride * chunk
        return self.view[torch.minimum(index, period - index)]


def train(
    rule: Rule,
    clips: Sequence[Clip],
    options: TrainOptions,
    on_iteration: Callable[[int, float], None] = lambda iteration, loss: None,
) -> None:
    """Train `rule` in place.

    Parameters
    ----------
    on_iteration
        Called after each optimizer step with its number, from 1, and its loss.

    Raises
    ------
    InputError
        If a clip is smaller than the crop.
    FloatingPointError
        If the loss is no longer finite; the rule then holds the last finite weights.
    """
    videos = Videos(clips, options)
    loss_function = LOSSES[options.loss] if isinstance(options.loss, str) else options.loss
    optimizer = torch.optim.Adam(rule.parameters(), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: learning_rate_factor(i, options.iterations)
    )
    average = AveragedModel(rule, avg_fn=running_average(options.average))
    state = rule.initial_state(options.batch, options.crop, options.crop)
    for iteration in range(1, options.iterations + 1):
        frames, masks, new = videos.next_chunk()
        state = state.detach()
        state[new] = 0
        targets = to_state(frames)
        losses = []
        for t in range(options.chunk):
            for _ in range(rule.config.steps_per_frame):
                state = rule(state, targets[t], masks[t])
            prediction = state[:, :1]
            losses.append(loss_function(prediction, targets[t], targets[t + 1], masks[t + 1]))
        loss = torch.stack(losses).mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at iteration {iteration}")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(rule.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient is {norm.item()} at iteration {iteration}")
        optimizer.step()
        schedule.step()
        average.update_parameters(rule)
        on_iteration(iteration, loss.item())
    rule.load_state_dict(average.module.state_dict())


def running_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Exponential average whose decay grows from nothing, so that it forgets the first weights."""

    def update(average: Tensor, weight: Tensor, count: Tensor | int) -> Tensor:
        return torch.lerp(average, weight, 1 - min(decay, (1 + int(count)) / (10 + int(count))))

    return update


def learning_rate_factor(iteration: int, iterations: int) -> float:
    """Warm up over the first 2 %, then fall as a cosine to 1 %."""
    warm_up = max(1, iterations // 50)
    if iteration < warm_up:
        return (iteration + 1) / warm_up
    progress = (iteration - warm_up) / max(1, iterations - warm_up)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
