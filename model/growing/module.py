"""The Growing NCA of Mordvintsev et al. (2020): an ordinary PyTorch module."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GrowingNCA(nn.Module):
    """Sobel perception, two 1x1 layers, cells that fire by chance, alive masking.

    The first four channels are red, green, blue, each times alpha, and alpha.
    """

    filters: Tensor

    def __init__(self, channels: int = 6, hidden: int = 10, fire_rate: float = 0.5) -> None:
        super().__init__()
        sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
        identity = torch.zeros(3, 3)
        identity[1, 1] = 1
        filters = torch.stack([identity, sobel, sobel.T])
        self.register_buffer("filters", filters.repeat(channels, 1, 1)[:, None])
        self.hidden = nn.Conv2d(3 * channels, hidden, 1)
        self.update = nn.Conv2d(hidden, channels, 1, bias=False)
        self.channels, self.fire_rate = channels, fire_rate

    def alive(self, state: Tensor) -> Tensor:
        """Tell where a cell or a neighbour is grown up: (B, 1, H, W), bool."""
        return F.max_pool2d(state[:, 3:4], 3, 1, 1) > 0.125

    def forward(self, state: Tensor) -> Tensor:
        """Do one step, of (B, C, H, W)."""
        before = self.alive(state)
        seen = F.conv2d(state, self.filters, padding=1, groups=self.channels)
        change = self.update(F.relu(self.hidden(seen)))
        fires = torch.rand_like(state[:, :1]) < self.fire_rate
        state = state + change * fires
        return state * (before & self.alive(state))
