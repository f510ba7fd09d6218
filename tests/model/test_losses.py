import math

import pytest
import torch

from scotopia.model.losses import FLOOR, dense_loss, log_dense_loss, observed_loss

SHAPE = (2, 3, 4, 5, 5)  # videos, frames, pixels of a cell, rows, columns


def test_observed_loss_reads_nothing_but_the_pixels_that_arrive() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, frame, sample = torch.rand(3, *SHAPE, generator=generator)
    valid = (torch.rand(SHAPE, generator=generator) < 0.3).float()
    prediction.requires_grad_()
    loss = observed_loss(prediction, frame, sample, valid)
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert torch.equal(gradient != 0, valid > 0)
    arrived = valid > 0
    expected = (prediction[arrived] - sample[arrived]).square().mean()
    torch.testing.assert_close(loss, expected)
    assert observed_loss(prediction, 1 - frame, sample * valid, valid) == loss


def test_observed_loss_of_nothing_is_zero() -> None:
    nothing = torch.zeros(SHAPE)
    assert observed_loss(nothing + 1, nothing, nothing, nothing) == 0


def test_dense_losses_by_hand() -> None:
    # One video, two frames, of errors 0.5 and 0.1.
    prediction = torch.tensor([0.5, 0.1])[None, :, None, None, None].expand(1, 2, 4, 3, 3)
    frame = torch.zeros(1, 2, 4, 3, 3)
    assert dense_loss(prediction, frame, frame, frame).item() == pytest.approx(0.13)
    expected = (math.log(0.25 + FLOOR) + math.log(0.01 + FLOOR)) / 2
    assert log_dense_loss(prediction, frame, frame, frame).item() == pytest.approx(expected)
