import training_speed

from scotopia.model.config import RuleConfig
from scotopia.model.options import TrainOptions


def test_both_loops_compute_the_same():
    config = RuleConfig(channels=3, hidden=5, trace_bits=3)
    work = training_speed.Work.draw(config, TrainOptions(batch=2, crop=9, chunk=4))
    work.check()


def test_every_round_is_timed_but_the_first():
    work = training_speed.Work.draw(
        RuleConfig(channels=2, hidden=2),
        TrainOptions(batch=1, crop=4, chunk=1),
    )
    seconds = training_speed.measure(work, 2)
    assert {len(found) for found in seconds.values()} == {2}
    assert len(seconds) == 5  # two tasks by two loops, and the matrix product
