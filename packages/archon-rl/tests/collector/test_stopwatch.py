"""``Stopwatch`` adds up the time in which it runs."""

from archon_rl.collector.stopwatch import Stopwatch


def test_a_lap_has_the_time_in_which_the_watch_ran_since_the_last():
    now = 0.0
    watch = Stopwatch(lambda: now)
    now = 1.0
    watch.run(True)
    now = 2.0
    watch.run(True)
    now = 4.0
    watch.run(False)
    now = 5.0
    watch.run(False)
    assert watch.lap() == 3.0
    watch.run(True)
    now = 6.0
    assert watch.lap() == 1.0
    now = 8.0
    assert watch.lap() == 2.0, "it runs on"
    watch.run(False)
    assert watch.lap() == 0.0
