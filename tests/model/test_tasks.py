from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scotopia.graph.errors import InputError
from scotopia.graph.surroundings import Event, Initial
from scotopia.model import native
from scotopia.model.float_rule import FloatRule
from scotopia.model.front import trace
from scotopia.model.options import LoopOptions
from scotopia.model.tasks import Batch, Task
from scotopia.model.train import Trainer, run
from scotopia.model.trainable import TrainableGraph


class Mixed(nn.Module):
    """A fixed filter, one of each channel, a dense layer, a factor, and noise."""

    channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("blur", torch.full((3, 1, 3, 3), 1 / 9))
        self.own = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        self.dense = nn.Conv2d(7, 3, 1)
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, state: Tensor, light: Tensor) -> Tensor:
        blurred = F.conv2d(state, self.blur, padding=1, groups=3)  # type: ignore[arg-type]
        change = self.dense(torch.cat([blurred, self.own(state), light], 1)).clamp(-1, 1)
        fires = torch.rand_like(state[:, :1]) < 0.5
        return (state + self.factor * change * fires).clamp(-2, 2)


def mixed() -> FloatRule:
    torch.manual_seed(0)
    traced = trace(Mixed(), 3)
    spread = Initial(np.zeros(3), np.zeros((3, 0, 0)), np.full(3, 0.5))
    return FloatRule(traced.graph, 2, (Event("light"),), spread, trained=traced.trained())


class Brighten(Task):
    """Become what arrives."""

    defaults = LoopOptions(iterations=30, batch=2, learning_rate=0.02, average=0.5)

    def start(self) -> FloatRule:
        return mixed()

    def batch(self, iteration: int, rng: np.random.Generator) -> Batch:
        light = torch.from_numpy(rng.random((2, 3, 5, 6), dtype=np.float32))
        return Batch(self.initial(5, 6), {"light": light}, frames=3, goal=light)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return (outputs[:, :, 0] - batch.goal).square().mean()


def trainer(task: Task | None = None, **options: object) -> Trainer[TrainableGraph]:
    task = task or Brighten()
    changed = replace(task.defaults, **options)  # type: ignore[arg-type]
    return Trainer(TrainableGraph(task.start()), task, changed)


def test_what_depends_on_parameters_is_trained_and_nothing_else() -> None:
    rule = mixed()
    counts = {
        type(rule.graph.operations[index]).__name__: [int(mask.sum()) for mask in masks]
        for index, masks in rule.trained.items()
        if masks[0].ndim == 1
    }
    assert counts == {"Constant": [1]}
    linear = [masks for masks in rule.trained.values() if len(masks) == 2]
    assert sorted(int(weight.sum()) for weight, _ in linear) == [7 * 3, 3 * 9]
    assert sorted(int(bias.sum()) for _, bias in linear) == [0, 3]
    assert TrainableGraph(rule).parameter_count == 1 + 3 * 7 + 3 + 27


def test_what_is_trained_is_found_whatever_the_weights_are_and_leaves_them() -> None:
    module = Mixed()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    module.dense.bias.requires_grad_(False)  # type: ignore[union-attr]
    traced = trace(module, 3)
    masks = traced.trained()
    assert sum(int(mask.sum()) for parts in masks.values() for mask in parts) == 1 + 3 * 7 + 27
    assert not any(parameter.any() for parameter in module.parameters())


def test_a_file_keeps_what_is_trained(tmp_path: Path) -> None:
    rule = mixed()
    rule.save(tmp_path / "a.safetensors")
    found = FloatRule.load(tmp_path / "a.safetensors")
    assert found.trained.keys() == rule.trained.keys()
    for index, masks in rule.trained.items():
        assert all(map(np.array_equal, masks, found.trained[index]))


def test_masks_of_other_shapes_are_refused() -> None:
    rule = mixed()
    (index, masks), *_ = rule.trained.items()
    with pytest.raises(InputError, match=rf"^operation {index} has not the numbers that are "):
        replace(rule, trained={index: masks[:0]})
    with pytest.raises(InputError, match=r"^operation 0 has not the numbers that are trained"):
        replace(rule, trained={0: masks})


def test_a_rule_without_parameters_is_refused() -> None:
    with pytest.raises(InputError, match=r"^the rule has no parameter that could be trained: "):
        TrainableGraph(replace(mixed(), trained={}))


def test_numbers_that_are_not_trained_stay() -> None:
    made = trainer()
    rule = made.rule.rule
    run(made)
    after = made.result().float_rule()
    moved = 0
    for index in range(len(rule.graph.operations)):
        masks = rule.trained.get(index, tuple(np.zeros(n.shape) for n in rule.numbers(index)))
        for old, new, mask in zip(rule.numbers(index), after.numbers(index), masks, strict=True):
            assert np.array_equal(old[mask == 0].astype(np.float32), new[mask == 0])
            moved += int((old != new)[mask != 0].sum())
    assert moved == 52


def test_a_task_of_ones_own_lowers_its_loss() -> None:
    losses: list[float] = []
    result = run(trainer(), lambda _, loss: losses.append(loss))
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    assert result.training_record["task"] == {"name": "Brighten", "loss": "its own"}
    assert result.training_record["iterations"] == 30


@pytest.mark.skipif(not native.available(), reason="there is no g++")
def test_compiled_and_interpreted_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = TrainableGraph(mixed())
    states, light = torch.randn(2, 3, 5, 6), torch.rand(2, 4, 5, 6)
    found = []
    for available in (native.available(), False):
        monkeypatch.setattr(native, "available", lambda available=available: available)
        generator = torch.Generator().manual_seed(1)
        outputs, last = rule.unroll(states, {"light": light}, frames=4, generator=generator)
        gradients = torch.autograd.grad(outputs.square().mean(), list(rule.parameters()))
        found.append((outputs.detach(), last, *gradients))
    assert found[0][0].shape == (2, 4, 3, 5, 6)
    assert torch.equal(found[1][0][:, -1], found[1][1])
    held = dict(zip(rule.parameters(), [None] * 9, strict=False)) | dict(rule.held())
    for one, other in zip(found[0][:2], found[1][:2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for one, other, mask in zip(found[0][2:], found[1][2:], held.values(), strict=True):
        if mask is not None:  # a gradient that nobody uses
            one, other = one.masked_fill(mask, 0), other.masked_fill(mask, 0)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_copy_has_numbers_of_its_own_and_the_same_graph() -> None:
    import copy

    rule = TrainableGraph(mixed())
    rule.training_record["a"] = [1]
    average = copy.deepcopy(rule).requires_grad_(False)
    again = copy.deepcopy(average)
    assert again.rule is rule.rule and not any(p.requires_grad for p in again.parameters())
    again.training_record["a"].append(2)
    next(again.parameters()).add_(1)
    assert rule.training_record["a"] == [1]
    for mine, its in zip(rule.parameters(), average.parameters(), strict=True):
        assert torch.equal(mine, its)


def changed(**methods: Callable[..., object]) -> Task:
    return type("Changed", (Brighten,), methods)()


def test_what_a_task_gives_must_fit_the_rule() -> None:
    good = Batch(torch.zeros(2, 3, 5, 6), {"light": torch.zeros(2, 1, 5, 6)})
    for batch, sentence in (
        (
            replace(good, states=torch.zeros(2, 4, 5, 6)),
            r"^task Changed gives states of shape \(2, 4, 5, 6\), the rule has 3 channels: give",
        ),
        (replace(good, inputs={}), r"^task Changed gives inputs none, the rule takes light: give"),
        (
            replace(good, frames=2),
            r"^task Changed gives input light of shape \(2, 1, 5, 6\), not \(2, 2, 5, 6\): give",
        ),
    ):
        with pytest.raises(InputError, match=sentence):
            trainer(changed(batch=lambda *_, batch=batch: batch)).step()


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (lambda *_: 1.0, "the loss is no number, a float: return a scalar tensor"),
        (
            lambda _, outputs, __: outputs.mean((1, 2, 3, 4)),
            "the loss is no number, of shape (2,): return a scalar tensor",
        ),
        (lambda *_: torch.zeros(()), "the loss depends on no weight: compute it of the outputs"),
    ],
)
def test_a_loss_that_is_none_is_refused(loss: Callable[..., object], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        trainer(changed(loss=loss)).step()
    assert str(caught.value) == sentence


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    with pytest.raises(FloatingPointError, match=r"^the loss is nan at iteration 1$"):
        trainer(changed(loss=lambda _, outputs, __: outputs.mean() * torch.nan)).step()


def test_gradients_may_all_have_length_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(optimizer="adam")
    monkeypatch.setattr(Brighten, "unit_gradients", True)
    made.step()
    for weight in made.rule.parameters():
        assert weight.grad is not None and weight.grad.norm().item() == pytest.approx(1, abs=1e-5)
