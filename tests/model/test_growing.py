from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from scotopia.graph.errors import InputError
from scotopia.graph.surroundings import Initial
from scotopia.model import native
from scotopia.model.checkpoint import Checkpoint
from scotopia.model.float_rule import FloatRule
from scotopia.model.growing.lizard import lizard
from scotopia.model.growing.picture import on_white, target_picture
from scotopia.model.growing.task import GROWN, HEALED, STAYED, GrowingTask, wound
from scotopia.model.options import LoopOptions
from scotopia.model.tasks import Batch, Pool
from scotopia.model.train import Trainer, run
from scotopia.model.trainable import TrainableGraph

SMALL = {"padding": 1, "channels": 6, "hidden": 8, "pool": 6, "steps": (6, 8), "damage_from": 0}
OPTIONS = LoopOptions(iterations=4, batch=4, learning_rate=5e-3, average=0.5)


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(native, "available", lambda: False)
    yield


@pytest.fixture
def disc(tmp_path: Path) -> str:
    """A red disc of 6 x 6 pixels."""
    y, x = np.mgrid[:6, :6] - 2.5
    pixels = np.zeros((6, 6, 4), np.uint8)
    pixels[np.hypot(y, x) < 2.6] = 255, 0, 0, 255
    Image.fromarray(pixels).save(tmp_path / "disc.png")
    return str(tmp_path / "disc.png")


def task(target: str, **changed: Any) -> GrowingTask:
    return GrowingTask(target, **(SMALL | changed))


def trainer(target: str, options: LoopOptions = OPTIONS, **changed: Any) -> Trainer[Any]:
    torch.manual_seed(0)
    made = task(target, **changed)
    return Trainer(TrainableGraph(made.start()), made, options)


def test_the_lizard_is_a_picture_with_alpha_that_nothing_exceeds() -> None:
    picture = lizard()
    assert picture.shape == (4, 24, 24)
    assert picture.min() == 0 and picture.max() == 1
    assert (picture[:3] <= picture[3] + 1e-6).all()  # times alpha
    assert 0.2 < (picture[3] > 0.5).mean() < 0.5
    for colour in ([0.20, 0.62, 0.25], [0.98, 0.84, 0.25]):  # green and yellow
        away = np.abs(picture - np.array([*colour, 1])[:, None, None]).max(0)
        assert (away < 1e-6).sum() >= 5


def test_a_picture_is_read_times_its_alpha(tmp_path: Path) -> None:
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[0, 1] = 255, 51, 0, 102
    pixels[1, 2] = 0, 0, 0, 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = target_picture(str(tmp_path / "a.png"))
    assert found[:, 0, 1].tolist() == pytest.approx([0.4, 0.08, 0, 0.4])
    assert found[:, 1, 2].tolist() == [0, 0, 0, 1]
    assert on_white(found)[0, 0].tolist() == [255, 255, 255]
    assert on_white(found)[0, 1].tolist() == [255, 173, 153]


@pytest.mark.parametrize(
    ("mode", "size", "colour", "sentence"),
    [
        ("RGB", (9, 9), "red", r" has no alpha, which says where it is alive: save it with"),
        (
            "RGBA",
            (9, 9),
            (9, 9, 9, 9),
            r" is transparent everywhere: give one that shows something",
        ),
        ("RGBA", (129, 9), "red", r" has 129 x 9 pixels, of which each is a cell: scale it to 128"),
    ],
)
def test_pictures_that_cannot_grow_are_refused(
    mode: str, size: tuple[int, int], colour: Any, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    Image.new(mode, size, colour).save(path)
    with pytest.raises(InputError, match=f"^target {path}{sentence}"):
        target_picture(str(path))


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(InputError, match=r"is no picture \(.*\): give a PNG file$"):
        target_picture(str(tmp_path / "a.png"))
    with pytest.raises(InputError, match=r"^target x.png is no file: name a picture, or lizard$"):
        target_picture("x.png")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"channels": 3}, "channels 3 is below 4, or no whole number: raise it"),
        ({"pool": 0}, "pool 0 is below 1, or no whole number: raise it"),
        ({"padding": 1.5}, "padding 1.5 is below 0, or no whole number: raise it"),
        ({"steps": (8, 6)}, "steps (8, 6) are not fewest and most: give steps=(32, 64)"),
        ({"overflow": -1}, "overflow -1 is below 0: give 0.3"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(changed: Any, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        task("lizard", **changed)
    assert str(caught.value) == sentence


def test_the_start_does_nothing_yet(disc: str) -> None:
    rule = task(disc).start()
    assert rule.initial.state(5, 5)[:, 2, 2].tolist() == [0, 0, 0, 1, 1, 1]
    graph = TrainableGraph(rule)
    states = torch.rand(2, 6, 5, 5)
    states[:, 3] = 1  # alive everywhere
    _, after = graph.unroll(states, {}, frames=1, steps=3)
    assert torch.equal(after, states)
    assert graph.parameter_count == 8 * (18 + 1) + 6 * 8


def test_training_lowers_the_loss(disc: str) -> None:
    made = trainer(disc, replace(OPTIONS, iterations=60, learning_rate=0.01), steps=(10, 10))
    losses: list[float] = []
    run(made, lambda _, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])


def test_a_pool_takes_the_worst_first_and_keeps_their_order() -> None:
    pool = Pool(torch.zeros(1, 2, 2), 5)
    pool.states += torch.arange(5.0)[:, None, None, None]
    rng = np.random.default_rng(0)
    taken = pool.take(3, rng, lambda states: states[:, 0, 0, 0])
    values = taken[:, 0, 0, 0].tolist()
    assert values == sorted(values, reverse=True) and len(set(values)) == 3
    pool.put(taken + 10)
    left = sorted(set(range(5)) - set(values))
    assert sorted(pool.states[:, 0, 0, 0].tolist()) == sorted([*left, *(v + 10 for v in values)])
    assert taken.data_ptr() != pool.states.data_ptr()


def test_of_a_batch_the_worst_is_a_seed_and_three_are_wounded(disc: str) -> None:
    made = trainer(disc).task
    made._pool.states[:] = made._goal.new_ones(6, 6, 8, 8)
    made._pool.states[:, :4] = made._goal
    made._pool.states[2] = 7
    batch = made.batch(1, np.random.default_rng(3))
    assert torch.equal(batch.states[0], made.initial(8, 8)[0])
    dead = [(state == 0).all(0).sum().item() for state in batch.states]
    assert all(count > 0 for count in dead[1:]) and len(dead) == 4
    assert 6 <= batch.steps <= 8
    made.damage_from = 1
    batch = made.batch(1, np.random.default_rng(3))
    assert not (batch.states[1:] == 0).all(1).any()


def test_a_wound_leaves_more_than_half_and_takes_some() -> None:
    rng = np.random.default_rng(0)
    shares = [wound(rng, 32, 32).mean() for _ in range(200)]
    assert min(shares) > 0.01 and max(shares) < 0.5


def test_the_loss_is_the_distance_of_the_picture_and_what_is_out_of_bounds(disc: str) -> None:
    made = trainer(disc).task
    outputs = torch.zeros(1, 1, 6, 8, 8)
    outputs[0, 0, :4] = made._goal
    assert made.loss(outputs, Batch(outputs[:, 0])) == 0
    outputs[0, 0, 5] = -3
    assert made.loss(outputs, Batch(outputs[:, 0])).item() == pytest.approx(0.3 * 4 / 6)
    outputs[0, 0, :4] += 0.5
    assert made.loss(outputs, Batch(outputs[:, 0])).item() > 0.25


def test_a_training_goes_on_where_it_was(disc: str, tmp_path: Path) -> None:
    whole, first, second = (trainer(disc) for _ in range(3))
    losses = [whole.step() for _ in range(4)]
    assert [first.step() for _ in range(2)] == losses[:2]
    first.checkpoint(note=1).write(tmp_path / "a.checkpoint")
    second.resume(Checkpoint.read(tmp_path / "a.checkpoint"), tmp_path / "a.checkpoint")
    assert [second.step() for _ in range(2)] == losses[2:]
    for mine, its in zip(second.average.parameters(), whole.average.parameters(), strict=True):
        assert torch.equal(mine, its)
    other = trainer(disc, overflow=0.5)
    with pytest.raises(InputError, match=r"was made with overflow 0.3, not 0.5: ask for 0.3"):
        other.resume(Checkpoint.read(tmp_path / "a.checkpoint"), Path("a.checkpoint"))


def test_a_target_that_changed_is_not_gone_on_with(disc: str) -> None:
    before = trainer(disc).checkpoint()
    Image.new("RGBA", (6, 6), "blue").save(disc)
    with pytest.raises(InputError, match=r"^checkpoint a was made with picture [0-9a-f]{16}, not"):
        trainer(disc).resume(before, Path("a"))


def test_the_record_leads_back_to_the_task(disc: str, tmp_path: Path) -> None:
    rule = trainer(disc).result()
    rule.save(tmp_path / "a.safetensors")
    found = GrowingTask.of(FloatRule.load(tmp_path / "a.safetensors").training)
    assert found is not None and np.array_equal(found.target, task(disc).target)
    assert GrowingTask.of({"task": {"name": "Denoising"}}) is None
    assert GrowingTask.of({}) is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"initial": Initial.zeros(6)},
            "the rule starts of nothing: import it again, to start from a cell or a .npy file",
        ),
    ],
)
def test_rules_that_cannot_grow_are_refused(change: Any, sentence: str, disc: str) -> None:
    made = task(disc)
    with pytest.raises(InputError) as caught:
        made.check(replace(made.start(), **change))
    assert str(caught.value) == sentence


def test_rules_of_too_few_channels_or_with_inputs_are_refused(disc: str) -> None:
    class Small(torch.nn.Module):
        channels = 3

        def forward(self, x: Tensor, light: Tensor) -> Tensor:
            return x + light

    from scotopia.graph.surroundings import Event
    from scotopia.model.front import trace

    graph = trace(Small(), 3, inputs={"light": 1}).graph
    with pytest.raises(InputError, match=r"^the rule has 3 channels, a picture has 4: red, "):
        task(disc).check(FloatRule(graph, events=(Event("light"),)))
    graph = trace(Small(), 5, inputs={"light": 1}).graph
    with pytest.raises(InputError, match=r"^the rule takes light, which nothing gives it when"):
        task(disc).check(FloatRule(graph, events=(Event("light"),)))


def test_a_batch_beyond_the_pool_is_refused(disc: str) -> None:
    with pytest.raises(InputError, match=r"^batch 4 is more than the pool of 3: choose fewer$"):
        trainer(disc, pool=3)


def test_growth_is_measured_wounded_and_healed(disc: str) -> None:
    made = task(disc)
    target = np.zeros((6, 8, 8))
    target[:4] = made.target

    def advance(state: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
        return state + (target - state) * (1 - 0.5**steps)

    growth = made.grow(advance, Initial.cell(np.ones(6)))
    assert growth.steps[0] == 0 and {GROWN, STAYED} <= set(growth.steps)
    assert growth.steps[-1] == STAYED + 2 * HEALED
    assert growth.psnr[0] < 20 and min(growth.grown, growth.stayed, growth.healed) > 100
    assert len(growth.states) == len(growth.steps) == len(growth.psnr)
    lost = (growth.wounded[3] == 0) & (made.target[3] > 0)
    assert 1 / 5 < lost.sum() / (made.target[3] > 0).sum() < 1 / 2
    half = made.psnr(made.target + 0.5)
    assert half == pytest.approx(6.0206, abs=1e-4)


def test_the_score_is_the_least_of_what_grew_stayed_and_healed(disc: str) -> None:
    made = trainer(disc)
    score = made.task.score(made.result())
    assert score == pytest.approx(
        made.task.psnr(made.task.initial(8, 8)[0].numpy())
    )  # it does nothing
