import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import Rounding
from scotopia.hdl.compiler import signed_digits as digits_of
from scotopia.model import score
from scotopia.model import task as float_task
from scotopia.model.checkpoint import digest
from scotopia.model.config import RuleConfig
from scotopia.model.rule import Rule
from scotopia.model.sampling import sample_mask
from scotopia.model.video import Clip
from scotopia.quantize import task as integer_task
from scotopia.quantize.feedback import round_weights
from scotopia.quantize.formats import Formats
from scotopia.quantize.layered_rule import LayeredRule
from scotopia.quantize.post_training import Calibration
from scotopia.quantize.sweep import (
    Design,
    Drift,
    Estimator,
    Grid,
    Plan,
    Point,
    Source,
    Task,
    drifts,
    forth_and_back,
    fronts,
    pareto_front,
    rule_file,
    signed_digits,
    summarize,
    table,
)

MakeGrid = Callable[..., Grid]

DESIGN = Design("small", 6, 6, Rounding.RND)


def noise(seed: int, frames: int = 24) -> Clip:
    return Clip(f"noise{seed}", np.random.default_rng(seed).random((frames, 16, 16), np.float32))


@pytest.fixture(scope="session")
def grid(
    tmp_path_factory: pytest.TempPathFactory,
    small_config: Callable[..., RuleConfig],
    float_rule: Callable[..., Rule],
) -> MakeGrid:
    """A grid of one tiny rule, one precision and one clip, in which any field can be set."""
    path = tmp_path_factory.mktemp("rules") / "small.safetensors"
    float_rule(3, small_config()).save(path)

    def make(**given: Any) -> Grid:
        fields = {
            "rules": [Source.read(path, "small")],
            "clips": [noise(0)],
            "calibration": [noise(9, 4)],
            "weight_bits": [6],
            "state_bits": [6],
            "roundings": [Rounding.RND],
            "seeds": [0],
            "density": 0.1,
            "drift_steps": 10,
        }
        return Grid(**{**fields, **given})

    return make


def work_off(plan: Plan, done: dict[str, Any] | None = None) -> tuple[dict[str, Any], list[str]]:
    """Results of a plan, and the names of what was computed, in this process."""
    results = dict(done or {})
    computed: list[str] = []

    def compute(task: Task) -> Any:
        if task.key not in results:
            arguments = [compute(a) if isinstance(a, Task) else a for a in task.arguments]
            results[task.key] = task.compute(*arguments)
            computed.append(task.compute.__name__)
        return results[task.key]

    for task in plan.tasks:
        compute(task)
    return results, computed


def by_hand(grid: Grid, tmp_path: Path, design: Design = DESIGN) -> tuple[Rule, LayeredRule]:
    """The float rule and the integer rule, made without the sweep."""
    path = tmp_path / "small.safetensors"
    path.write_bytes(grid.rules[0].content)
    rule = Rule.load(path)
    calibration = Calibration.measure(rule, list(grid.calibration), grid.density)
    hidden = calibration.formats(design.precision.hidden)
    filled = calibration.rule
    formats = Formats.choose(filled, hidden, design.precision, design.rounding, scales="kernel")
    return rule, formats.integer_rule(round_weights(filled, formats, calibration.moments))


def five_and_a_half(rule: LayeredRule) -> tuple[int, float]:
    return 5, 0.5


def no_cell(rule: LayeredRule) -> tuple[int, float]:
    raise InputError("rounding RND_CONV is not supported by the cell")


def test_row_is_what_the_rules_score_by_hand(grid: MakeGrid, tmp_path: Path) -> None:
    plan = Plan(grid(estimate=five_and_a_half))
    (row,) = table(plan, work_off(plan)[0])
    rule, integer = by_hand(plan.grid, tmp_path)
    frames = plan.grid.clips[0].frames
    mask = sample_mask(frames.shape, 0.1, 0)
    exact = score.psnr(frames, float_task.reconstruct(rule, frames, mask))
    fixed = score.psnr(frames, integer_task.reconstruct(integer, frames, mask))
    assert exact != pytest.approx(fixed, abs=1e-3)
    assert (row.float_psnr, row.psnr) == (pytest.approx(exact, abs=1e-4), round(fixed, 4))
    assert row.loss == pytest.approx(exact - fixed, abs=2e-4)
    layers = (integer.perceive, integer.update)
    assert row.weight_bits_total == 6 * sum(layer.weight.size for layer in layers)
    assert row.state_bits_per_cell == integer.state_bits
    assert (row.cycles_per_step, row.lut4_per_thousand_updates) == (5, 0.5)
    assert (row.clip, row.frames, row.seed, row.density) == ("noise0", 24, 0, 0.1)
    assert row.reason == ""


def test_weights_whose_errors_add_up_can_have_bits_of_their_own(
    grid: MakeGrid, tmp_path: Path
) -> None:
    plan = Plan(grid(update_bits=9))
    (row,) = table(plan, work_off(plan)[0])
    (design,) = plan.grid.designs
    _, integer = by_hand(plan.grid, tmp_path, design)
    prediction = integer.perceive.weight[:, 0].size
    others = integer.perceive.weight.size - prediction
    assert row.weight_bits_total == 6 * others + 9 * (prediction + integer.update.weight.size)
    assert (row.update_bits, str(design)) == (9, "small w6 u9 s6 RND")
    (summary,) = summarize(plan.grid, [row])
    assert summary.design == design
    # They are other rules than those without: a sweep that goes on must not mix them up.
    assert not {task.key for task in plan.scores.values()} & set(work_off(Plan(grid()))[0])


def test_signed_digits_are_those_of_the_program(grid: MakeGrid, tmp_path: Path) -> None:
    _, integer = by_hand(grid(), tmp_path)
    for layer in (integer.perceive, integer.update):
        expected = sum(len(list(digits_of(int(code)))) for code in layer.weight.flat)
        assert signed_digits(layer) == expected > 0


def test_each_thing_is_computed_once(grid: MakeGrid) -> None:
    plan = Plan(
        grid(
            clips=[noise(0), noise(1)],
            weight_bits=[4, 6, 8],
            state_bits=[6, 8],
            roundings=[Rounding.TRN, Rounding.RND],
            seeds=[0, 1],
            drift_steps=10,
        )
    )
    _, computed = work_off(plan)
    assert {name: computed.count(name) for name in set(computed)} == {
        "same": 3,  # frames of two clips, and of one to calibrate with
        "measure": 1,
        "score_float": 4,
        "quantize": 12,
        "score_integer": 48,
        "drift_of_float": 1,
        "drift_of_integer": 12,
    }
    assert len(plan.grid.points) == len(plan.scores) == 48


def test_one_rule_under_two_names_is_computed_once(grid: MakeGrid) -> None:
    source = grid().rules[0]
    plan = Plan(grid(rules=[source, replace(source, name="twin")]))
    results, computed = work_off(plan)
    assert computed.count("score_integer") == 1
    assert [row.rule for row in table(plan, results)] == ["small", "twin"]


@pytest.mark.parametrize(
    ("change", "scores", "floats"),
    [
        ({"weight_bits": [7]}, True, False),
        ({"state_bits": [7]}, True, False),
        ({"roundings": [Rounding.TRN]}, True, False),
        ({"calibration": [noise(8, 4)]}, True, False),
        ({"clips": [noise(1)]}, True, True),
        ({"clips": [Clip("noise0", noise(0).frames[:22])]}, True, True),
        ({"seeds": [1]}, True, True),
        ({"density": 0.2}, True, True),
        ({"drift_steps": 200}, False, False),
        ({"clips": [Clip("renamed", noise(0).frames)]}, False, False),
    ],
)
def test_a_task_is_named_by_all_that_decides_its_result(
    grid: MakeGrid, change: dict[str, Any], scores: bool, floats: bool
) -> None:
    def keys(tasks: dict[Any, Task]) -> list[str]:
        return [task.key for task in tasks.values()]

    before, after = Plan(grid()), Plan(grid(**change))
    assert (keys(before.scores) != keys(after.scores)) == scores
    assert (keys(before.float_scores) != keys(after.float_scores)) == floats
    assert (keys(before.drifts) != keys(after.drifts)) == (scores or "drift_steps" in change)


def test_another_rule_is_another_task(
    grid: MakeGrid,
    tmp_path: Path,
    small_config: Callable[..., RuleConfig],
    float_rule: Callable[..., Rule],
) -> None:
    path = tmp_path / "small.safetensors"
    float_rule(4, small_config()).save(path)
    before, after = Plan(grid()), Plan(grid(rules=[Source.read(path, "small")]))
    assert not {task.key for task in before.tasks} & {task.key for task in after.tasks}


def test_a_larger_grid_computes_only_what_is_new(grid: MakeGrid) -> None:
    done, _ = work_off(Plan(grid()))
    _, computed = work_off(Plan(grid(weight_bits=[6, 7])), done)
    assert sorted(computed) == ["drift_of_integer", "quantize", "score_integer"]


def test_what_is_refused_is_a_row_with_its_reason(grid: MakeGrid) -> None:
    plan = Plan(grid(weight_bits=[6, 16], state_bits=[16]))
    results, _ = work_off(plan)
    fine, refused = table(plan, results)
    assert fine.loss is not None
    assert refused.weight_bits == 16
    assert (refused.psnr, refused.loss, refused.seconds, refused.signed_digits) == (None,) * 4
    assert refused.float_psnr == fine.float_psnr
    assert refused.reason.startswith("layer perceive: an accumulator can reach ")
    assert refused.reason.endswith("the most is 2**31 - 1: quantize with fewer bits")
    assert [one.design.weight_bits for one in summarize(plan.grid, [fine, refused])] == [6]
    assert [run.design.weight_bits for run in drifts(plan, results)] == [6]


def test_a_rule_that_no_cell_can_run_is_scored_all_the_same(grid: MakeGrid) -> None:
    def row(estimate: Estimator | None) -> Any:
        plan = Plan(grid(estimate=estimate))
        return table(plan, work_off(plan)[0])[0]

    without = row(no_cell)
    assert without.cycles_per_step is without.lut4_per_thousand_updates is None
    assert without.reason == "rounding RND_CONV is not supported by the cell"
    assert without.psnr == row(None).psnr
    assert without.psnr is not None


def test_a_rule_that_overflows_floats_is_refused(grid: MakeGrid, tmp_path: Path) -> None:
    rule, _ = by_hand(grid(), tmp_path)
    rule.perceive.weight.data.fill_(3e38)
    rule.save(tmp_path / "wild.safetensors")
    plan = Plan(grid(rules=[Source.read(tmp_path / "wild.safetensors", "wild")]))
    (row,) = table(plan, work_off(plan)[0])
    assert (row.float_psnr, row.psnr) == (None, None)
    assert row.reason == (
        "PSNR is nan, the rule diverges: train it again; "
        "a hidden neuron's activation is not finite: train the rule again"
    )


def test_rule_of_a_design_is_the_one_that_was_scored(grid: MakeGrid, tmp_path: Path) -> None:
    plan = Plan(grid())
    results, _ = work_off(plan)
    path = tmp_path / "integer.safetensors"
    path.write_bytes(rule_file(results[plan.integer_rules[DESIGN].key]))
    found, expected = LayeredRule.load(path), by_hand(plan.grid, tmp_path)[1]
    np.testing.assert_array_equal(found.perceive.weight, expected.perceive.weight)
    assert found.state_formats == expected.state_formats


def test_means_are_over_clips_and_seeds(grid: MakeGrid) -> None:
    plan = Plan(grid(clips=[noise(0), noise(1)], seeds=[0, 1]))
    rows = table(plan, work_off(plan)[0])
    assert [(row.clip, row.seed) for row in rows] == [
        *(("noise0", 0), ("noise0", 1)),
        *(("noise1", 0), ("noise1", 1)),
    ]
    (summary,) = summarize(plan.grid, rows)
    assert summary.psnr == pytest.approx(np.mean([row.psnr for row in rows]), abs=1e-4)
    assert summary.loss == pytest.approx(np.mean([row.loss for row in rows]), abs=1e-4)
    assert summary.total_bits == rows[0].weight_bits_total + rows[0].state_bits_per_cell


def test_a_design_with_a_missing_row_has_no_mean(grid: MakeGrid) -> None:
    plan = Plan(grid(seeds=[0, 1]))
    results, _ = work_off(plan)
    del results[plan.scores[Point(DESIGN, "noise0", 1)].key]
    rows = table(plan, results)
    assert [row.seed for row in rows] == [0]
    assert summarize(plan.grid, rows) == []


def test_clips_trained_on_count_for_no_mean(grid: MakeGrid) -> None:
    source = replace(grid().rules[0], trained_on=("noise1", "elsewhere"))
    plan = Plan(grid(rules=[source], clips=[noise(0), noise(1)]))
    rows = table(plan, work_off(plan)[0])
    (summary,) = summarize(plan.grid, rows)
    assert summary.psnr == rows[0].psnr != rows[1].psnr
    assert grid(rules=[source], clips=[noise(1)]).counted == ["noise1"]


def test_a_clip_that_ranges_were_found_with_counts_as_seen(grid: MakeGrid, tmp_path: Path) -> None:
    plan = Plan(grid(clips=[noise(0), noise(9, 24)], calibration=[noise(9, 24)]))
    assert plan.grid.counted == ["noise0"]
    (made,) = (work_off(plan)[0][task.key] for task in plan.integer_rules.values())
    path = tmp_path / "rule.safetensors"
    path.write_bytes(base64.b64decode(made["file"]))
    record = LayeredRule.load(path).training
    assert record["clips"] == ["noise9"]
    assert record["digests"] == {"noise9": digest(noise(9, 24))}


coordinates = st.integers(0, 5).map(float)


@given(st.lists(st.tuples(coordinates, coordinates), max_size=12))
def test_pareto_front_has_all_that_nothing_beats(points: list[tuple[float, float]]) -> None:
    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    expected = [i for i, point in enumerate(points) if not any(beats(o, point) for o in points)]
    found = pareto_front([cost for cost, _ in points], [value for _, value in points])
    assert sorted(found) == expected
    assert [points[i] for i in found] == sorted(points[i] for i in found)


def test_fronts_leave_out_designs_whose_cost_is_unknown(grid: MakeGrid) -> None:
    plan = Plan(grid(weight_bits=[4, 6]))
    summaries = summarize(plan.grid, table(plan, work_off(plan)[0]))
    found = fronts(summaries)
    assert found["lut4_per_thousand_updates"] == []
    assert found["total_bits"][0].design.weight_bits == 4


def test_drift_runs_float_and_fixed_side_by_side(grid: MakeGrid, tmp_path: Path) -> None:
    plan = Plan(grid(drift_steps=131))
    (run,) = drifts(plan, work_off(plan)[0])
    rule, integer = by_hand(plan.grid, tmp_path)
    frames = forth_and_back(plan.grid.clips[0].frames, 66)  # of two steps each
    mask = sample_mask(frames.shape, 0.1, 0)
    assert run.step.tolist() == list(range(2, 133, 2))
    for found, estimates in (
        (run.float_psnr, float_task.reconstruct(rule, frames, mask)),
        (run.psnr, integer_task.reconstruct(integer, frames, mask)),
    ):
        np.testing.assert_allclose(found, score.psnr_curve(frames, estimates), atol=1e-4)
    np.testing.assert_allclose(run.loss, run.float_psnr - run.psnr, atol=1e-4)


def test_slope_is_the_growth_of_the_loss_after_the_warm_up() -> None:
    step = 4 * np.arange(1, 101)
    fixed = 20 - 0.002 * step
    fixed[:20] = 3
    assert Drift(DESIGN, step, np.full(100, 20.0), fixed).slope == pytest.approx(2, abs=1e-3)
    assert Drift(DESIGN, step[:1], np.full(1, 20.0), fixed[:1]).slope == 0


def test_clip_is_played_forth_and_back() -> None:
    frames = np.arange(3, dtype=np.float32)
    assert forth_and_back(frames, 8).tolist() == [0, 1, 2, 2, 1, 0, 0, 1]
    assert forth_and_back(frames, 2).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"weight_bits": [6, 17]},
            "weight bits 17 are outside 2 to 16: choose 8, for instance",
        ),
        ({"update_bits": 1}, "update bits 1 are outside 2 to 16: choose 8, for instance"),
        ({"state_bits": [1]}, "state bits 1 are outside 2 to 16: choose 8, for instance"),
        (
            {"clips": [noise(0, 20)]},
            "clip noise0: a clip of 20 frames cannot be scored, the first 20 are warm-up: "
            "give at least 21 frames",
        ),
        (
            {"clips": [noise(0), noise(0)]},
            "two clips are called noise0: rename one, or name it once",
        ),
        ({"density": 0}, "density 0 is not above 0 and up to 1: give 0.01 for 1 %"),
        ({"drift_steps": 0}, "drift steps 0 are fewer than 1: give 1000"),
        (
            {"drift_steps": 2},
            "drift steps 2 are one frame of small, which tells no slope: give 1000, or more than 2",
        ),
        (
            {"calibration": [Clip("spot", np.zeros((1, 1, 1), np.float32))]},
            "clip spot: no pixel of 1 frame(s) of 1 x 1 arrives at density 0.1 and seed 0, so that "
            "nothing would be seen: raise the density, or show more or larger frames",
        ),
    ],
)
def test_a_bad_grid_is_refused(grid: MakeGrid, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        grid(**change)
    assert str(caught.value) == sentence


def test_two_rules_of_one_name_are_refused(grid: MakeGrid) -> None:
    with pytest.raises(InputError) as caught:
        grid(rules=grid().rules * 2)
    assert str(caught.value) == "two rules are called small: rename one, or name it once"
