import pytest
import zoo

from scotopia.cli.evaluate import Evaluation
from scotopia.graph.errors import InputError
from scotopia.model.config import RuleConfig
from scotopia.model.rule import Rule

LEADS = {"still": 0.5, "fast": -0.25}


@pytest.fixture
def rule() -> Rule:
    rule = Rule(RuleConfig(channels=2, hidden=3))
    rule.training_record = {"clips": ["shown"], "command": "scotopia train", "seconds": 120}
    return rule


@pytest.fixture
def evaluation() -> Evaluation:
    clips = {
        clip: {
            "last-seen": {"psnr": 15.0, "ssim": 0.3},
            zoo.FIXED: {"psnr": 20.0, "ssim": 0.5},
            "small": {"psnr": 20.0 + lead, "ssim": 0.6},
        }
        for clip, lead in LEADS.items()
    }
    return Evaluation(clips, {"still": 0.0, "fast": 0.1}, [], {}, {}, {})


def test_worst_margin_names_the_clip(evaluation):
    assert zoo.worst_margin(evaluation, "small") == (-0.25, "fast")


def test_overview_has_a_row_for_each_method(rule, evaluation):
    lines = zoo.overview(evaluation, {"small": rule}, list(evaluation.clips["still"]))
    assert "| small | 181 | 696 | 20.50 | 19.75 | 20.12 | 0.600 | -0.25 (fast) |" in lines
    assert lines.endswith("|\n\nOn the Pareto front of PSNR against MACs: small.")


def test_overview_names_the_rules_that_a_smaller_one_beats(rule, evaluation):
    large = Rule(RuleConfig(channels=2, hidden=4))
    for row in evaluation.clips.values():
        row["large"] = row["small"]
    lines = zoo.overview(evaluation, {"small": rule, "large": large}, ["small", "large"])
    assert lines.endswith("On the Pareto front of PSNR against MACs: small. Not on it: large.")


def test_card_says_what_a_rule_costs_and_how_it_was_made(rule, evaluation):
    text = zoo.card("small", rule, evaluation)
    assert "- parameters: 181" in text
    assert "- trained on: shown; 0 synthetic clips" in text
    assert "- started as: ?" in text
    assert "- training: ? iterations, optimizer ?, loss ?, 2 minutes" in text
    assert "- command: `scotopia train`" in text


def test_clips_that_a_rule_was_trained_on_are_refused(rule):
    class Named:
        name = "shown"

    with pytest.raises(InputError, match="rule small was trained on shown"):
        zoo.score({"small": rule}, [Named()], [0])
