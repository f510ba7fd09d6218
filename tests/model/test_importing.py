from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scotopia.graph.errors import InputError
from scotopia.model.importing import import_growing_nca as import_compared
from scotopia.model.rule import Rule

#: Where a test compares on its own.
import_growing_nca = partial(import_compared, reference=None)

SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
PAD = {"zero": "constant", "replicate": "replicate", "wrap": "circular"}
CHANNELS, HIDDEN_NEURONS, INPUTS = 16, 128, ("sample", "valid")


class GrowingNCA(nn.Module):
    """As most models in PyTorch: identity and Sobel filters by hand, the ReLU a function."""

    def __init__(self, border: str = "zero") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc0 = nn.Conv2d(3 * (CHANNELS + len(INPUTS)), HIDDEN_NEURONS, 1)
        self.fc1 = nn.Conv2d(HIDDEN_NEURONS, CHANNELS, 1, bias=False)
        self.border = border

    def forward(self, seen: Tensor) -> Tensor:
        padded = F.pad(seen, (1, 1, 1, 1), mode=PAD[self.border])
        count = seen.shape[1]
        filtered = [
            F.conv2d(padded, kernel.expand(count, 1, 3, 3), groups=count)
            for kernel in (SOBEL, SOBEL.T)
        ]
        perception = torch.cat([seen, *filtered], 1)
        return seen[:, :CHANNELS] + 0.1 * self.fc1(F.relu(self.fc0(perception)))

    def to_rule(self, **options: Any) -> Rule:
        update = nn.Conv2d(HIDDEN_NEURONS, CHANNELS, 1, bias=False)
        update.load_state_dict({"weight": 0.1 * self.fc1.weight})
        options = {"border": self.border, **options}
        return import_growing_nca([nn.Identity(), SOBEL, SOBEL.T], self.fc0, update, **options)


def run_beside(
    step: Callable[[Tensor], Tensor], rule: Rule, order: list[int], fired: Tensor | None = None
) -> float:
    """Largest difference in six steps of a model and its rule, whose state is in `order`."""
    generator = torch.Generator().manual_seed(1)
    state = rule.initial_state(1, 6, 7)
    x = 0.5 * torch.rand(1, len(order), 6, 7, generator=generator) - 0.25
    state[:, : len(order)] = x[:, order]
    sample, valid = 2 * torch.rand(1, 1, 6, 7, generator=generator) - 1, torch.ones(1, 1, 6, 7)
    worst = 0.0
    with torch.no_grad():
        for t in range(6):
            mask = None if fired is None else fired[t]
            moved = step(torch.cat([x, sample, valid], 1))
            x = moved if mask is None else torch.where(mask > 0, moved, x)
            assert x.abs().max() < 1, "the model has left the rule's range: nothing is compared"
            state = rule(state, sample, valid, mask)
            worst = max(worst, float((state[:, : len(order)] - x[:, order]).abs().max()))
    return worst


@pytest.mark.parametrize("border", ["zero", "replicate", "wrap"])
def test_growing_nca_by_hand_steps_as_its_rule(border: str) -> None:
    model = GrowingNCA(border)
    rule = model.to_rule()
    assert (rule.config.kind, rule.config.perception) == ("residual", "full")
    assert (rule.config.channels, rule.config.hidden, rule.config.inputs) == (16, 128, INPUTS)
    assert run_beside(model, rule, list(range(CHANNELS))) < 1e-6


def test_prediction_moves_to_channel_0_and_the_others_follow() -> None:
    model = GrowingNCA()
    order = [3, 0, 1, 2, *range(4, CHANNELS)]
    assert run_beside(model, model.to_rule(prediction=3), order) < 1e-6


def test_fire_rate_is_carried_over_and_its_mask_means_the_same() -> None:
    model = GrowingNCA()
    rule = model.to_rule(fire_rate=0.5, steps_per_frame=3, trace_bits=5)
    config = rule.config
    assert (config.fire_rate, config.steps_per_frame, config.trace_bits) == (0.5, 3, 5)
    fired = (torch.rand(6, 1, 1, 6, 7, generator=torch.Generator().manual_seed(2)) < 0.5).float()
    assert run_beside(model, rule, list(range(CHANNELS)), fired) < 1e-6


LAYERS: dict[str, Callable[[], list[nn.Module]]] = {
    "full": lambda: [nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 1)],
    "depthwise": lambda: [
        nn.Conv2d(6, 18, 3, padding="same", groups=6, padding_mode="circular"),
        nn.Identity(),
        nn.Sequential(nn.Conv2d(18, 8, 1), nn.Conv2d(8, 5, 1, bias=False)),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 7, 1),
        nn.Conv2d(7, 4, 1),
    ],
    "grouped": lambda: [
        nn.Conv2d(6, 4, 3, padding=1, groups=2, padding_mode="replicate"),
        nn.Conv2d(4, 8, 1, groups=4),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1, groups=2),
    ],
    "alone": lambda: [nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 1)],
}


@pytest.mark.parametrize("name", LAYERS)
def test_sequential_steps_as_its_rule(name: str) -> None:
    torch.manual_seed(3)
    layers = nn.Sequential(*LAYERS[name]())
    with torch.no_grad():  # biases that are seen at every border, changes that stay in range
        layers[0].bias.fill_(0.5)  # type: ignore[union-attr, operator]
        layers[-1].weight.mul_(0.1)  # type: ignore[union-attr, operator]
        layers[-1].bias.mul_(0.1)  # type: ignore[union-attr, operator]

    def step(seen: Tensor) -> Tensor:
        return seen[:, :4] + layers(seen.clone())

    for prediction, order in ((0, [0, 1, 2, 3]), (2, [2, 0, 1, 3])):
        rule = import_growing_nca(layers, prediction=prediction, reference=step)
        assert run_beside(step, rule, order) < 1e-6


def test_linear_layers_and_weights_are_1x1_layers() -> None:
    torch.manual_seed(4)
    perceive, hidden, update = torch.randn(12, 1, 3, 3), nn.Linear(12, 5), nn.Linear(5, 4)
    with torch.no_grad():
        update.weight.mul_(0.02)
        update.bias.mul_(0.02)

    def step(seen: Tensor) -> Tensor:
        filtered = F.conv2d(F.pad(seen, (1, 1, 1, 1), mode="circular"), perceive, groups=6)
        return seen[:, :4] + update(F.relu(hidden(filtered.movedim(1, -1)))).movedim(-1, 1)

    rule = import_growing_nca(perceive, hidden, update, border="wrap", reference=step)
    assert run_beside(step, rule, list(range(4))) < 1e-6


def test_relu_may_be_named_in_either_part_or_in_none() -> None:
    conv, hidden, update = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 4, 1)
    rules = [
        import_growing_nca(conv, hidden, update),
        import_growing_nca(conv, nn.Sequential(hidden, nn.ReLU()), update),
        import_growing_nca(conv, hidden, nn.Sequential(nn.ReLU(), update)),
    ]
    for rule in rules[1:]:
        for found, expected in zip(rule.parameters(), rules[0].parameters(), strict=True):
            assert torch.equal(found, expected)


def alive_masked(model: GrowingNCA, seen: Tensor) -> Tensor:
    alive = F.max_pool2d(seen[:, 3:4], 3, 1, 1) > 0.1
    return torch.where(alive, model(seen), 0)


def test_alive_masking_is_found_by_the_models_own_step() -> None:
    model = GrowingNCA()
    model.to_rule(reference=model)
    with pytest.raises(
        InputError, match=r"^reference differs from the layers by \d\S*: the model "
    ):
        model.to_rule(reference=lambda seen: alive_masked(model, seen))
    with pytest.raises(InputError, match=r"^reference differs from the layers by nan: the model "):
        model.to_rule(reference=lambda seen: torch.full_like(seen[:, :CHANNELS], torch.nan))


def test_reference_may_clip_as_the_rule_does() -> None:
    layers = nn.Sequential(nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 1))
    clipped = import_growing_nca(
        layers, reference=lambda seen: (seen[:, :4] + layers(seen)).clamp(-1, 1)
    )
    assert clipped.config.border == "zero"


class Squared(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) ** 2


def conv(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(6, 6, **{"kernel_size": 3, "padding": 1, **options})


def hooked() -> nn.Conv2d:
    layer = conv()
    layer.register_forward_pre_hook(lambda _layer, seen: (2 * seen[0],))
    return layer


def broken(number: float) -> nn.Conv2d:
    layer = conv()
    with torch.no_grad():
        layer.weight[1, 2, 0, 1] = number
    return layer


HIDDEN, UPDATE = nn.Conv2d(6, 5, 1), nn.Conv2d(5, 4, 1)
RELU = "a rule has nn.Conv2d, nn.Linear and one nn.ReLU: train a model without it"
TOGETHER = "give hidden and update, or an nn.Sequential with one nn.ReLU"
SHOWN = "6 channels: name in inputs what the model perceives beside its state"

REFUSED: dict[str, tuple[Callable[[], Rule], str]] = {
    "kernel size": (
        lambda: import_growing_nca(conv(kernel_size=5, padding=2), HIDDEN, UPDATE),
        "perceive has kernels of 5 x 5, a rule has 3 x 3 in perceive and 1 x 1 behind it: train a "
        "model with these",
    ),
    "second neighbourhood": (
        lambda: import_growing_nca(conv(), nn.Conv2d(6, 5, 3, padding=1), UPDATE),
        "hidden has kernels of 3 x 3, a rule has 3 x 3 in perceive and 1 x 1 behind it: train a "
        "model with these",
    ),
    "stride": (
        lambda: import_growing_nca(conv(stride=2), HIDDEN, UPDATE),
        "perceive has stride (2, 2), a rule has (1, 1): train a model with that",
    ),
    "dilation": (
        lambda: import_growing_nca(conv(dilation=2), HIDDEN, UPDATE),
        "perceive has dilation (2, 2), a rule has (1, 1): train a model with that",
    ),
    "padding": (
        lambda: import_growing_nca(conv(padding=2), HIDDEN, UPDATE),
        "perceive has padding (2, 2), a rule has (1, 1): train a model with that",
    ),
    "padding of a 1x1 layer": (
        lambda: import_growing_nca(conv(), HIDDEN, nn.Conv2d(5, 4, 1, padding=1)),
        "update has padding (1, 1), a rule has (0, 0): train a model with that",
    ),
    "reflection": (
        lambda: import_growing_nca(conv(padding_mode="reflect"), HIDDEN, UPDATE),
        "perceive has padding_mode reflect, a rule has zeros: train a model with that",
    ),
    "unknown border": (
        lambda: import_growing_nca(conv(padding=0), HIDDEN, UPDATE),
        "perceive does not pad: name the border that the model pads with",
    ),
    "tensor without border": (
        lambda: import_growing_nca([SOBEL], HIDDEN, UPDATE),
        "perceive[0] is a tensor: name the border that the model pads with",
    ),
    "two borders": (
        lambda: import_growing_nca(
            [conv(), conv(padding_mode="circular")], nn.Conv2d(12, 5, 1), UPDATE
        ),
        "a rule has one border, but perceive[0] says zero, perceive[1] says wrap: train a model "
        "with one",
    ),
    "another border": (
        lambda: import_growing_nca(conv(), HIDDEN, UPDATE, border="wrap"),
        "a rule has one border, but border says wrap, perceive says zero: train a model with one",
    ),
    "normalization": (
        lambda: import_growing_nca(conv(), nn.Sequential(HIDDEN, nn.GroupNorm(1, 5)), UPDATE),
        f"hidden[1] is a torch.nn.modules.normalization.GroupNorm, {RELU}",
    ),
    "alive mask": (
        lambda: import_growing_nca(conv(), HIDDEN, nn.Sequential(UPDATE, nn.MaxPool2d(3, 1, 1))),
        f"update[1] is a torch.nn.modules.pooling.MaxPool2d, {RELU}",
    ),
    "another activation": (
        lambda: import_growing_nca(nn.Sequential(conv(), nn.Tanh(), nn.ReLU(), UPDATE)),
        f"perceive[1] is a torch.nn.modules.activation.Tanh, {RELU}",
    ),
    "own layer": (
        lambda: import_growing_nca(Squared(6, 6, 3, padding=1), HIDDEN, UPDATE),
        f"perceive is a {Squared.__module__}.Squared, {RELU}",
    ),
    "no layer": (
        lambda: import_growing_nca("perceive", HIDDEN, UPDATE),  # type: ignore[arg-type]
        f"perceive is a builtins.str, {RELU}",
    ),
    "hooks": (
        lambda: import_growing_nca(hooked(), HIDDEN, UPDATE),
        "perceive has hooks, which may change what it computes: remove them",
    ),
    "second ReLU": (
        lambda: import_growing_nca(nn.Sequential(conv(), nn.ReLU(), HIDDEN, nn.ReLU(), UPDATE)),
        f"perceive has 2 ReLU, a rule has one: {TOGETHER}",
    ),
    "no ReLU": (
        lambda: import_growing_nca(conv()),
        f"perceive has 0 ReLU, a rule has one: {TOGETHER}",
    ),
    "half a model": (
        lambda: import_growing_nca(conv(), HIDDEN),
        "hidden and update come together: give both or neither",
    ),
    "no update": (
        lambda: import_growing_nca(nn.Sequential(conv(), nn.ReLU())),
        "update has no layer: give a 3x3 layer before and a 1x1 behind ReLU",
    ),
    "input too many": (
        lambda: import_growing_nca(conv(), HIDDEN, UPDATE, inputs=("sample",)),
        "perceive has weights of shape (6, 6, 3, 3) and groups 1, but is shown 5 channels: name in "
        "inputs what the model perceives beside its state",
    ),
    "channels": (
        lambda: import_growing_nca(conv(), nn.Conv2d(7, 5, 1), UPDATE),
        f"hidden has weights of shape (5, 7, 1, 1) and groups 1, but is shown {SHOWN}",
    ),
    "channels of a depthwise tensor": (
        lambda: import_growing_nca(torch.zeros(7, 1, 3, 3), HIDDEN, UPDATE, border="zero"),
        f"perceive has weights of shape (7, 1, 3, 3) and groups 6, but is shown {SHOWN}",
    ),
    "flat tensor": (
        lambda: import_growing_nca(torch.zeros(6, 9), HIDDEN, UPDATE, border="zero"),
        "perceive has shape (6, 9): give (O, I / groups, 3, 3) or (3, 3)",
    ),
    "not a number": (
        lambda: import_growing_nca(broken(torch.nan), HIDDEN, UPDATE),
        "perceive has a number that is no finite float: train the model again",
    ),
    "overflow": (
        lambda: import_growing_nca(broken(3e38), torch.full((5, 6, 1, 1), 2.0), UPDATE),
        "perceive.weight of the rule is not finite: train the model again",
    ),
    "integers": (
        lambda: import_growing_nca(torch.ones(6, 6, 3, 3).int(), HIDDEN, UPDATE, border="zero"),
        "perceive has a number that is no finite float: train the model again",
    ),
    "prediction": (
        lambda: import_growing_nca(conv(), HIDDEN, UPDATE, prediction=4),
        "prediction 4 is outside 0 to 3, the channels that update has: choose one inside",
    ),
    "too many hidden neurons": (
        lambda: import_growing_nca(conv(), nn.Conv2d(6, 129, 1), nn.Conv2d(129, 4, 1)),
        "hidden 129 is outside 1 to 128: choose one inside",
    ),
    "too many channels": (
        lambda: import_growing_nca(nn.Conv2d(35, 6, 3, padding=1), HIDDEN, nn.Conv2d(5, 33, 1)),
        "channels 33 is outside 1 to 32: choose one inside",
    ),
    "fire rate": (
        lambda: import_growing_nca(conv(), HIDDEN, UPDATE, fire_rate=1.5),
        "fire_rate 1.5 is outside (0, 1]: choose 1",
    ),
    "shape of the reference": (
        lambda: import_growing_nca(conv(), HIDDEN, UPDATE, reference=lambda seen: seen),
        "reference gives shape (1, 6, 9, 9), a next state has (1, 4, 9, 9): return the state "
        "channels alone",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_rule_can_do_is_refused(name: str) -> None:
    build, message = REFUSED[name]
    with pytest.raises(InputError) as error:
        build()
    assert str(error.value) == message
