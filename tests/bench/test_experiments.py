from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is in the optional extra `bench`")

import experiments
from experiments import BASE, EXPERIMENTS, Experiment
from runs import Lab, Score, Variant

from scotopia.model.config import RuleConfig
from scotopia.model.options import TrainOptions
from scotopia.model.video import Clip

SMALL = RuleConfig(channels=2, hidden=7)
OPTIONS = TrainOptions(iterations=2, batch=1, crop=12, chunk=2)


def clip(name: str, seed: int) -> Clip:
    return Clip(name, np.random.default_rng(seed).random((24, 12, 12), np.float32))


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path / "runs", [clip("shown", 0)], [clip("unseen", 1)], OPTIONS)


def test_no_run_is_done_twice(lab, monkeypatch):
    variant = Variant.best_start("small", SMALL)
    lab.train(variant)
    found = lab.read(lab.rule_run(variant))
    monkeypatch.setattr("runs.train", lambda *_: pytest.fail("trained again"))
    lab.train(replace(variant, label="the same by another name"))
    assert lab.read(lab.rule_run(variant)) == found


def test_what_decides_the_outcome_decides_the_file(lab):
    variant = Variant("small", SMALL, "filter")
    others = [
        replace(variant, start="random"),
        replace(variant, loss="dense"),
        replace(variant, config=replace(SMALL, trace_bits=9)),
    ]
    files = {lab.rule_run(other) for other in (variant, *others)}
    for clips, held_out in (
        ([clip("shown", 2)], lab.held_out),
        (lab.train_clips, [clip("unseen", 2)]),
    ):
        files.add(Lab(lab.folder, clips, held_out, OPTIONS).rule_run(variant))
    longer = Lab(lab.folder, lab.train_clips, lab.held_out, replace(OPTIONS, iterations=3))
    files.add(longer.rule_run(variant))
    assert len(files) == 7


def test_a_clip_is_not_both_shown_and_held_out(tmp_path):
    lab = Lab(tmp_path, [clip("same", 0)], [clip("same", 1)], OPTIONS)
    with pytest.raises(ValueError, match="two clips are called same"):
        lab.rule_run(Variant("small", SMALL, "random"))


def test_an_experiment_ends_in_a_table_and_a_plot(lab, tmp_path, monkeypatch):
    variants = [
        Variant.best_start("seven", SMALL),
        Variant("six", replace(SMALL, hidden=6), "random"),
    ]
    monkeypatch.setattr(
        experiments, "EXPERIMENTS", {"sizes": Experiment("Sizes", "Why?", variants)}
    )
    monkeypatch.setattr(experiments, "REFERENCES", ("last-seen", experiments.ORACLE))
    experiments.run(["sizes"], lab, tmp_path)
    text = (tmp_path / "experiments.md").read_text()
    assert "| seven | filter |" in text
    assert "| six | random |" in text
    assert "(sizes.svg)" in text
    assert (tmp_path / "sizes.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_variants_of_an_experiment_are_told_apart(name):
    variants = EXPERIMENTS[name].variants
    assert len({(variant.label, variant.start) for variant in variants}) == len(variants)
    assert len({replace(variant, label="") for variant in variants}) == len(variants)


def test_the_base_stands_in_most_experiments():
    shapes = [{variant.config for variant in found.variants} for found in EXPERIMENTS.values()]
    assert all(BASE in found for found in shapes)


def test_the_price_of_self_supervision_is_told():
    def scored(loss, start, psnr):
        return Variant(loss, BASE, start, loss), Score({"a": psnr}, {"a": 0.0})

    found = [scored("log-dense", "filter", 25.5), scored("observed", "filter", 24.25)]
    conclude = EXPERIMENTS["losses"].conclude
    assert conclude(found) == (
        "What learning without the ground truth costs: 1.25 dB from the start as a filter."
    )
    assert conclude(found[:1]) == ""
