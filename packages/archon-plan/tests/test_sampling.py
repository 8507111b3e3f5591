"""Times of sampled batches: closed forms at equal lengths, and properties of the distribution of lengths."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from archon_core.errors import ConfigError
from archon_core.models.anatomy import AttentionAnatomy, LayerAnatomy, ModelAnatomy, WeightShape
from archon_core.models.parallel_plan import HeadCounts
from archon_plan.lengths import Lengths
from archon_plan.sampling import Fleet, Samples, ends, schedule
from archon_plan.server import Rates, Server

MODEL = ModelAnatomy(
    8,
    32,
    (WeightShape("embed.weight", (32, 8), "vocabulary", 0),),
    (
        LayerAnatomy(
            (WeightShape("attention.q_proj.weight", (16, 8), "column", 0),), AttentionAnatomy(HeadCounts(4, 2), 4, 4)
        ),
    ),
    (WeightShape("head.weight", (32, 8), "vocabulary", 0),),
)
EQUAL = Lengths(100.0, 0.0, 1000)
RATES = Rates(memory=1e6, bandwidth=1e6, flops=1e9)
FLEET = Fleet(Server(MODEL, max_sequences=8), RATES, 2, Samples(16, 1, 20.0, EQUAL), refills=False)


def test_lengths_have_their_mean_with_the_limit() -> None:
    lengths = Lengths(700.0, 1.2, 1024)
    draw = random.Random(3)
    logarithm = lengths._mu  # the parameter that the constructor searches for
    drawn = [min(1024.0, math.exp(draw.gauss(logarithm, math.sqrt(math.log1p(1.44))))) for _ in range(40_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(700, rel=0.01)
    assert lengths.squares == pytest.approx(sum(one * one for one in drawn) / len(drawn), rel=0.02)
    assert sum(lengths.draw(5000, seed=1)) / 5000 == pytest.approx(700, rel=0.001)


def test_the_longest_of_many_follows_from_the_distribution_of_one() -> None:
    lengths = Lengths(500.0, 0.6, 100_000)
    draw = random.Random(5)
    logarithm, sigma = lengths._mu, math.sqrt(math.log1p(0.36))
    longest = sorted(max(math.exp(draw.gauss(logarithm, sigma)) for _ in range(64)) for _ in range(2001))
    assert lengths.longest(64) == pytest.approx(longest[1000], rel=0.03)
    assert Lengths(500.0, 0.6, 600).longest(64) == 600


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 0.5), (1001.0, 0.5), (10.0, -1.0), (10.0, math.nan)])
def test_impossible_lengths_are_refused(mean: float, spread: float) -> None:
    with pytest.raises(ConfigError, match="allowed are means above 0 up to max_new_tokens"):
        Lengths(mean, spread, 1000)


def test_a_batch_of_equal_lengths_takes_its_waves() -> None:
    assert FLEET.places == 8
    eight = FLEET.server.decode_seconds(RATES, 8, 8 * (20 + 50))  # halfway through the completions
    assert FLEET.batch_seconds == pytest.approx(100 * eight + FLEET.prefill_seconds)
    twice = replace(FLEET, samples=replace(FLEET.samples, prompts=32))
    assert twice.batch_seconds == pytest.approx(200 * eight + twice.prefill_seconds)
    # Half-empty servers decode faster, but not twice as fast: they read the same weights.
    half = replace(FLEET, samples=replace(FLEET.samples, prompts=8))
    assert FLEET.batch_seconds / 2 < half.batch_seconds < FLEET.batch_seconds


def test_sampling_ahead_keeps_the_servers_full() -> None:
    """With equal lengths it does the same work as synchronous sampling in full waves."""
    assert FLEET.running == 8
    assert FLEET.work == pytest.approx(FLEET.batch_seconds)
    [first, *_] = FLEET.batches(1)
    assert first.latency == pytest.approx(FLEET.work)
    capped = replace(FLEET, concurrent=4)
    assert capped.running == 2
    assert capped.tokens_per_second < FLEET.tokens_per_second


def test_a_group_keeps_its_place_until_its_longest_completion_ends() -> None:
    uneven = replace(FLEET, samples=Samples(2, 4, 20.0, Lengths(100.0, 1.0, 10_000)))
    assert uneven.running < 4, "eight completions on two servers, of which the short ones leave early"


def test_a_publication_makes_servers_prefill_what_they_decode() -> None:
    refilling = replace(FLEET, refills=True)
    expected = FLEET.server.prefill_seconds(RATES, 8, FLEET.samples.context)
    assert refilling.work == pytest.approx(FLEET.work + expected)
    assert FLEET.samples.context == pytest.approx(20 + 50)


def test_a_long_tail_delays_a_synchronous_batch_and_not_the_work() -> None:
    uneven = replace(FLEET, samples=replace(FLEET.samples, prompts=64, lengths=Lengths(100.0, 1.0, 100_000)))
    even = replace(FLEET, samples=replace(FLEET.samples, prompts=64))
    assert uneven.batch_seconds > 1.5 * even.batch_seconds
    ahead = uneven.batches(2)
    assert max(batch.latency for batch in ahead) > 2 * uneven.work
    assert min(batch.latency for batch in ahead) >= uneven.work


def test_servers_without_room_for_a_sequence_are_explained() -> None:
    tight = replace(FLEET, rates=replace(RATES, memory=2000.0))
    with pytest.raises(ConfigError, match=r"servers of 1 device: found 0\.0 GiB .* raise t in rollout\.backend"):
        _ = tight.batch_seconds


@pytest.mark.parametrize("places", [1, 3, 7, 50])
def test_schedules_match_a_plain_simulation(places: int) -> None:
    """Token by token: every running sequence gets one token per step."""
    draw = random.Random(places)
    lengths = [float(draw.randrange(1, 40)) for _ in range(23)]
    waiting, running, steps, tokens = list(lengths), [], 0, 0.0
    while waiting or running:
        while waiting and len(running) < places:
            running.append([waiting.pop(0), 0.0])
        steps += 1
        tokens += sum(5 + one[1] + 0.5 for one in running)
        running = [[left - 1, done + 1] for left, done in running if left > 1]
    assert ends(lengths, places) == steps
    assert schedule(lengths, places, lambda n, held: 1.0, 5.0) == pytest.approx(steps)
    assert schedule(lengths, places, lambda n, held: held, 5.0) == pytest.approx(tokens)
