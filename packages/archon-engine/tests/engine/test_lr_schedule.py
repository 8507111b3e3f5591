import math

import pytest

from archon_engine.optimizer.lr_schedule import lr_factor


def rates(schedule, total=10, **options):
    return [lr_factor(step, total, schedule, **options) for step in range(total)]


def test_warm_up_rises_linearly_and_never_starts_at_zero():
    assert rates("constant", total=5, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_linear_reaches_the_least_rate_at_the_last_step():
    assert rates("linear", total=5, min_ratio=0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine_is_half_way_down_in_the_middle():
    factors = rates("cosine", total=11)
    assert factors[0] == 1.0
    assert factors[5] == pytest.approx(0.5)
    assert factors[10] == pytest.approx(0.0)
    assert factors[2] == pytest.approx((1 + math.cos(math.pi * 0.2)) / 2)


def test_wsd_stays_at_the_peak_until_its_decay():
    assert rates("wsd", total=10, decay_steps=2, warmup_steps=1) == pytest.approx([1] * 8 + [0.5, 0.0])
    assert rates("wsd", total=3, decay_steps=1, min_ratio=0.1) == pytest.approx([1, 1, 0.1])


def test_steps_beyond_the_end_keep_the_least_rate():
    assert lr_factor(50, 10, "cosine", min_ratio=0.1) == pytest.approx(0.1)


def test_a_decay_without_a_number_of_steps_is_an_error():
    with pytest.raises(ValueError, match=r"'cosine': found no number of steps, which it needs; set trainer.max_steps"):
        lr_factor(3, None, "cosine")
