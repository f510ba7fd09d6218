"""What training lowers: losses over a chunk of frames."""

from collections.abc import Callable

from torch import Tensor

#: Loss of a chunk: (predictions, frames, next_samples, next_valids), each (B, T, P, H, W) in the
#: state's range, to a scalar. Next is what arrives in the frame after.
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

#: Added to the mean squared error before its logarithm is taken: an error of 33 dB, since the
#: state's range is twice a pixel's. Keeps frames that are nearly perfect from ruling the gradient.
FLOOR = 2e-3


def dense_loss(predictions: Tensor, frames: Tensor, _samples: Tensor, _valids: Tensor) -> Tensor:
    """Mean squared error against the whole frames: needs the ground truth."""
    return (predictions - frames).square().mean()


def log_dense_loss(
    predictions: Tensor, frames: Tensor, _samples: Tensor, _valids: Tensor
) -> Tensor:
    """Mean logarithm of each frame's mean squared error: what PSNR averages over clips.

    A dark or low-contrast video counts as much as a bright one.
    """
    return (predictions - frames).square().mean((2, 3, 4)).add(FLOOR).log().mean()


def observed_loss(
    predictions: Tensor, _frames: Tensor, next_samples: Tensor, next_valids: Tensor
) -> Tensor:
    """Mean squared error against the pixels that arrive next: needs no ground truth.

    A cell predicts, then its pixel arrives; all that is learned from is the difference. 0, if
    nothing arrives.
    """
    errors = next_valids * (predictions - next_samples).square()
    return errors.sum() / next_valids.sum().clamp(min=1)


LOSSES: dict[str, Loss] = {
    "dense": dense_loss,
    "log-dense": log_dense_loss,
    "observed": observed_loss,
}
