"""The float rule: one small network that every cell of the grid runs.

The state of a cell has `channels` learned channels, of which channel 0 is the **prediction**, and
the **input register**: the last `sample` that arrived and a `trace` that tells how long ago.
After Mordvintsev et al., "Growing Neural Cellular Automata" (2020), with a gated update as in
Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder" (2014), eq. 5 to 8.
"""

import dataclasses
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scotopia.graph.errors import InputError
from scotopia.graph.operations import Linear
from scotopia.graph.step import StepGraph

from .config import FILTERS, Border, RuleConfig
from .files import check_training_record, read_rule_file, write_rule_file
from .learner import Learner
from .scotopic import register
from .scotopic.float_graph import float_graph
from .scotopic.register import Seen, look

#: Identity, Sobel in x and in y, Laplacian, each scaled to a response of about one.
_SOBEL = torch.tensor(
    [
        [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
        [[-1 / 8, 0, 1 / 8], [-2 / 8, 0, 2 / 8], [-1 / 8, 0, 1 / 8]],
        [[-1 / 8, -2 / 8, -1 / 8], [0, 0, 0], [1 / 8, 2 / 8, 1 / 8]],
        [[1 / 16, 2 / 16, 1 / 16], [2 / 16, -12 / 16, 2 / 16], [1 / 16, 2 / 16, 1 / 16]],
    ]
)

PAD_MODE: dict[Border, str] = {"zero": "constant", "replicate": "replicate", "wrap": "circular"}


def to_state(pixel: Tensor) -> Tensor:
    """Map a pixel in [0, 1] to the state's range, so that 8-bit pixel p becomes p / 128 - 1.

    Scaling by 255 / 128 instead of 2 makes a pixel's 8-bit code and a state's 8-bit code the same
    number but for the inverted top bit: the sensor needs no arithmetic.
    """
    return pixel * (255 / 128) - 1


def to_pixel(state: Tensor) -> Tensor:
    """Map a prediction back to a pixel in [0, 1]; inverse of `to_state`, clipped."""
    return ((state + 1) * (128 / 255)).clamp(0, 1)


class FilteredLayer(nn.Module):
    """A 3x3 layer whose kernels are sums of a few filters of each channel.

    Nothing lies between filter and sum, so that it equals a full layer with kernels `weight`; but
    it has fewer parameters, and needs fewer MACs when each filter is applied once.
    """

    def __init__(self, config: RuleConfig) -> None:
        super().__init__()
        count = FILTERS[config.perception]
        if config.perception == "sobel":
            self.register_buffer("filters", _SOBEL.expand(config.perceived, 4, 3, 3).clone())
        else:
            self.filters = nn.Parameter(torch.randn(config.perceived, count, 3, 3) / 3)
        bound = (count * config.perceived) ** -0.5
        self.mix = nn.Parameter(torch.empty(config.hidden, config.perceived, count))
        self.bias = nn.Parameter(torch.empty(config.hidden))
        nn.init.uniform_(self.mix, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    @property
    def weight(self) -> Tensor:
        """Kernels of the full layer that this one equals, (hidden, perceived, 3, 3)."""
        return torch.einsum("hpf,pfyx->hpyx", self.mix, self.filters)

    def forward(self, padded: Tensor) -> Tensor:
        """Apply it to (B, perceived, H + 2, W + 2)."""
        return F.conv2d(padded, self.weight, self.bias)


class Rule(Learner):
    """The float rule.

    All tensors are (B, C, H, W): batch size, state channels (`config.channel_names`), rows,
    columns of cells. Learned channels and samples lie in [-1, 1], traces in [0, 1).
    """

    def __init__(self, config: RuleConfig) -> None:
        super().__init__()
        self.config = config
        self.training_record = {}
        self.perceive: nn.Conv2d | FilteredLayer = (
            nn.Conv2d(config.perceived, config.hidden, 3)
            if config.perception == "full"
            else FilteredLayer(config)
        )
        self.update = nn.Conv2d(config.hidden, config.updates, 1)
        with torch.no_grad():  # start near x <- x, so that information survives the first steps
            self.update.weight.mul_(0.5)
            nn.init.zeros_(self.update.bias)  # type: ignore[arg-type]

    #: Random bits that round its update; only numbers on a grid need any.
    dither = 0

    def sense(self, samples: Tensor) -> Tensor:
        """Return samples, any shape, as the input register can hold them."""
        return samples

    def layers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights and biases that a step uses: (hidden, perceived, 3, 3), of the update 1 x 1."""
        perceive_bias, update_bias = self.perceive.bias, self.update.bias
        assert perceive_bias is not None and update_bias is not None
        return self.perceive.weight, perceive_bias, self.update.weight, update_bias

    @property
    def graph(self) -> StepGraph:
        """The step as a graph, of any weights."""
        return float_graph(self.config)

    def weights(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Numbers of the graph's layers, as `Interpreter` takes them."""
        weight, bias, update_weight, update_bias = self.layers()
        perceive, update = (index for index, _ in self.graph.of_kind(Linear))
        return {
            perceive: (weight.flatten(2), bias),
            update: (update_weight.flatten(2), update_bias),
        }

    def noise(self, fired: Tensor | None, dither: Tensor | None = None) -> Tensor | None:
        """Return the random words that the graph takes, (..., words, H, W); None if there are none.

        Parameters
        ----------
        fired
            (..., 1, H, W) of cells that update, see `forward`.
        dither
            (..., 1, H, W) in [0, 1), of a rule that has one.
        """
        # A cell fires where its random number is below the rate.
        words = [*([] if fired is None else [1 - fired]), *([] if dither is None else [dither])]
        return torch.cat(words, -3) if words else None

    def initial_state(self, batch: int, height: int, width: int) -> Tensor:
        """Return the state before the first sample: mid-grey, trace 0."""
        device = self.perceive.weight.device
        return torch.zeros(batch, len(self.config.channel_names), height, width, device=device)

    def forward(
        self, state: Tensor, sample: Tensor, valid: Tensor, fired: Tensor | None = None
    ) -> Tensor:
        """Do one step.

        Parameters
        ----------
        state
            (B, C, H, W).
        sample
            (B, P, H, W) what arrived in this frame, mapped by `to_state`; read where valid. P is
            `config.pixels`.
        valid
            (B, P, H, W) 1 where a pixel arrived in this frame, else 0. Both are held for all steps
            of the frame.
        fired
            (B, 1, H, W) 1 where a cell updates, else 0: its register is written all the same. By
            default all do.
        """
        x = state[:, : self.config.channels]
        seen = self.look(state, sample, valid)
        hidden = F.relu(self.perceive(self.show(x, seen)))
        updated = self.apply_update(x, self.update(hidden))
        if fired is not None:
            updated = torch.where(fired > 0, updated, x)
        return torch.cat([updated, seen.last, seen.trace], 1)

    def look(self, state: Tensor, sample: Tensor, valid: Tensor) -> Seen:
        """Take a sample where one arrives; see `scotopic.register`."""
        x, register = state[:, : self.config.channels], state[:, self.config.channels :]
        old, age = register.chunk(2, 1)
        trusts = "trust" in self.config.inputs
        return look(
            _Tensors(),
            self.config.inputs,
            prediction=x[:, : self.config.pixels],
            doubt=x[:, self.config.doubt : self.config.doubt + 1] if trusts else None,
            old=old,
            age=age,
            sample=sample,
            valid=valid,
            trace_bits=self.config.trace_bits,
            keep=_clipped,
        )

    def show(self, x: Tensor, seen: Seen) -> Tensor:
        """Gather what a cell shows its neighbours, with a border of one cell around."""
        shown = torch.cat([x, *seen.inputs], 1)
        return F.pad(shown, (1, 1, 1, 1), mode=PAD_MODE[self.config.border])

    def apply_update(self, x: Tensor, update: Tensor) -> Tensor:
        """Move x towards the candidate as far as the gate opens, or by the residual."""
        if self.config.kind == "residual":
            return (x + update).clamp(-1, 1)
        candidate, gate = update.chunk(2, 1)
        return x + hard_sigmoid(gate) * (candidate.clamp(-1, 1) - x)

    def save(self, path: Path) -> None:
        """Write the rule and its training record to one file, whole or not at all."""
        description = {
            "config": dataclasses.asdict(self.config),
            "training": self.training_record,
        }
        tensors = {
            name: tensor.detach().cpu().numpy() for name, tensor in self.state_dict().items()
        }
        write_rule_file(path, "float rule", description, tensors)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a rule.

        Raises
        ------
        InputError
            If the file is no float rule of this version, or has a weight that is missing, of the
            wrong shape or type, or not finite.
        """
        description, tensors = read_rule_file(path, "float rule")
        try:
            rule = cls(RuleConfig(**description["config"]))
            rule.training_record = check_training_record(description["training"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"rule {path} has no valid description ({error}): write it again"
            ) from error
        expected = {name: tuple(tensor.shape) for name, tensor in rule.state_dict().items()}
        found = {name: tensor.shape for name, tensor in tensors.items()}
        if expected != found:
            raise InputError(
                f"rule {path} holds tensors {found}, its description asks for {expected}: "
                "write it again"
            )
        for name, tensor in tensors.items():
            if tensor.dtype != np.float32:
                raise InputError(
                    f"rule {path} has a {name} of {tensor.dtype}, not float32: write it again"
                )
            if not torch.isfinite(torch.from_numpy(tensor)).all():
                raise InputError(f"rule {path} has a {name} that is not finite: train it again")
        rule.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
        return rule


class _Tensors:
    """What `scotopic.register` needs of tensors."""

    def where(self, condition: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        bit = condition if condition.dtype == torch.bool else condition > 0
        return torch.where(bit, a, b)

    def not_negative(self, a: Tensor) -> Tensor:
        return a.clamp(min=0)


def _clipped(name: str, value: Tensor) -> Tensor:
    """Clip an input to the range in which it is shown."""
    if name in ("flicker", "innovation", "recall"):
        return value.clamp(-1, 1)
    return value.clamp(0, 1) if name == "trust" else value


def recency(trace: Tensor) -> Tensor:
    """See `scotopic.register`."""
    found: Tensor = register.recency(_Tensors(), trace)
    return found


def hard_sigmoid(x: Tensor) -> Tensor:
    """Clip 1/2 + x/4 to [0, 1]: a sigmoid that costs a shift, since 1/4 is a power of two."""
    return (0.5 + 0.25 * x).clamp(0, 1)
