import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from archon_rollout import sampling
from archon_rollout.sampling import SamplingOptions, draw, filter_logits, penalise_frequency, sample

LOGITS = st.floats(-8, 8, width=32) | st.just(-math.inf)


def logit_rows(min_rows=1, max_rows=4, max_vocabulary=30):
    return st.integers(1, max_vocabulary).flatmap(
        lambda size: st.lists(
            st.lists(LOGITS, min_size=size, max_size=size).filter(lambda row: max(row) > -math.inf),
            min_size=min_rows,
            max_size=max_rows,
        )
    )


def options(n_rows, temperature=1.0, top_p=1.0, top_k=0, greedy=False) -> SamplingOptions:
    return SamplingOptions(
        temperature=torch.full((n_rows,), temperature, dtype=torch.float64),
        top_p=torch.full((n_rows,), top_p, dtype=torch.float64),
        top_k=torch.full((n_rows,), top_k),
        greedy=torch.full((n_rows,), greedy),
        any_tempered=temperature != 1.0,
        any_filtered=top_p < 1 or top_k > 0,
        any_greedy=greedy,
    )


def kept(row: list[float], top_k: int = 0, top_p: float = 1.0) -> set[int]:
    """What top-k and then top-p keep of a row, by sorting and exact sums of the float64 probabilities."""
    ranked = sorted(range(len(row)), key=lambda i: (-row[i], i))
    ranked = ranked[: top_k or None]
    weights = [Fraction(math.exp(row[i])) for i in ranked]
    reached, chosen = Fraction(0), set()
    for token, weight in zip(ranked, weights, strict=True):
        if top_p < 1 and chosen and reached >= Fraction(top_p) * sum(weights):
            break
        chosen.add(token)
        reached += weight
    return {token for token in chosen if row[token] > -math.inf}


@pytest.mark.parametrize("block_width", [1, 4, 64, None])
@pytest.mark.parametrize("vocabulary", [1, 3, 4, 8, 30])
def test_a_grid_of_uniforms_draws_every_token_in_proportion_to_its_probability(vocabulary, block_width):
    generator = torch.Generator().manual_seed(vocabulary)
    row = torch.randn(vocabulary, generator=generator, dtype=torch.float64) * 2
    row[vocabulary // 2 :: 3] = -math.inf
    row[0] = 0.0
    n = 20_000
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    drawn, log_normaliser = draw(row.expand(n, -1), grid, block_width=block_width)
    counts = torch.bincount(drawn, minlength=vocabulary).double()
    # Each token owns one interval, which holds its length in grid points, give or take one.
    assert (counts - row.softmax(-1) * n).abs().max() <= 1 + 1e-6
    torch.testing.assert_close(log_normaliser, row.logsumexp(-1).expand(n))
    assert bool((drawn.diff() >= 0).all()), "the draw follows the order of the vocabulary"


@pytest.mark.parametrize("block_width", [1, 4, 64, None])
def test_the_ends_of_the_unit_interval_draw_the_first_and_last_possible_token(block_width):
    logits = torch.tensor([-math.inf, 0.3, -math.inf, 1.2, -0.7, -math.inf]).expand(2, -1)
    drawn, _ = draw(logits, torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64), block_width=block_width)
    assert drawn.tolist() == [1, 4]


def test_the_largest_uniform_number_never_draws_an_impossible_token():
    # Its product with the total must not round up to the total, past which nothing is left.
    logits = torch.randn(5000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[:, -2:] = -math.inf
    drawn, _ = draw(logits, torch.full((5000,), 1 - 2.0**-53, dtype=torch.float64))
    assert drawn.max() == 3


def test_numbers_at_the_borders_of_blocks_never_draw_an_impossible_token():
    # Where a uniform number meets a block's border, rounding must not leave the block's possible tokens.
    logits = torch.randn(4000, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[:, :, [0, 2]] = -math.inf
    masses = logits[:, :, 1].softmax(-1)
    for border in range(1, 4):
        for nudge in (-(2.0**-53), 0.0, 2.0**-53):
            at_border = masses[:, :border].sum(-1) + nudge
            drawn, _ = draw(logits.flatten(1), at_border, block_width=3)
            assert bool(((drawn == 3 * border + 1) | (drawn == 3 * border - 2)).all())


def test_a_rare_token_at_the_end_of_a_large_vocabulary_is_drawn_as_often_as_it_should_be():
    # In fp32 a running sum near 1 swallows masses below 6e-8: this tail of 100,000 tokens, 0.1% in all, would be lost.
    logits = torch.cat([torch.zeros(1), torch.full((100_000,), math.log(1e-8))])
    expected = 1e-3 / (1 + 1e-3)
    n = 64
    inside_tail = 1 - expected + expected * (torch.arange(n, dtype=torch.float64) + 0.5) / n
    drawn, _ = draw(logits.expand(n, -1), inside_tail)
    assert bool((drawn >= 1).all())
    torch.testing.assert_close(drawn.double() / 100_000, (torch.arange(n).double() + 0.5) / n, atol=1e-3, rtol=0)


@given(logit_rows(), st.integers(0, 12))
def test_top_k_keeps_exactly_the_most_probable_tokens_and_lower_ids_among_equals(rows, top_k):
    logits = torch.tensor(rows)
    cut = filter_logits(logits, torch.full((len(rows),), top_k), torch.ones(len(rows), dtype=torch.float64))
    for row, got in zip(rows, cut, strict=True):
        assert set((got > -math.inf).nonzero().flatten().tolist()) == kept(row, top_k)
    assert torch.equal(cut[cut > -math.inf], logits[cut > -math.inf])


@pytest.mark.parametrize("candidates", [1, 3, 1024])
@settings(max_examples=60)
@given(rows=logit_rows(), top_k=st.integers(0, 12), top_p=st.floats(0.01, 1.0))
def test_top_p_keeps_the_smallest_set_that_reaches_it_within_what_top_k_leaves(candidates, rows, top_k, top_p):
    logits = torch.tensor(rows, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "CANDIDATES", candidates)
        cut = filter_logits(logits, torch.full((len(rows),), top_k), torch.full((len(rows),), top_p).double())
    for row, got in zip(rows, cut, strict=True):
        found = set((got > -math.inf).nonzero().flatten().tolist())
        # The running sums round, so a set that reaches top_p within 1e-12 may be one token smaller or larger.
        assert found in (kept(row, top_k, top_p), kept(row, top_k, top_p - 1e-12), kept(row, top_k, top_p + 1e-12))


def test_top_p_of_a_known_distribution():
    logits = torch.tensor([0.125, 0.5, 0.125, 0.25], dtype=torch.float64).log().expand(4, -1)
    top_p = torch.tensor([0.4, 0.6, 0.8, 0.9], dtype=torch.float64)
    cut = filter_logits(logits, torch.zeros(4, dtype=torch.int64), top_p) > -math.inf
    assert cut.int().tolist() == [[0, 1, 0, 0], [0, 1, 0, 1], [1, 1, 0, 1], [1, 1, 1, 1]]


def test_filtered_draws_follow_the_renormalised_distribution():
    row = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64).log()
    n = 9_000
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    drawn, logprobs = sample(row.expand(n, -1), grid, options(n, top_k=3, top_p=0.7), None)
    # Top-k leaves .4 .3 .2 (of .9); .7 of that is .63, reached by the first two.
    counts = torch.bincount(drawn, minlength=4)
    assert counts[[0, 2]].tolist() == [0, 0]
    assert abs(counts[1].item() - n * 4 / 7) <= 1
    torch.testing.assert_close(logprobs, row[drawn])


@given(logit_rows(min_rows=2, max_rows=5, max_vocabulary=12), st.data())
def test_a_row_draws_the_same_alone_and_beside_rows_with_other_options(rows, data):
    n = len(rows)
    logits = torch.tensor(rows)
    column = lambda strategy: data.draw(st.lists(strategy, min_size=n, max_size=n))  # noqa: E731
    temperature = torch.tensor(column(st.sampled_from([0.5, 1.0, 1.7])), dtype=torch.float64)
    top_p = torch.tensor(column(st.sampled_from([0.3, 0.9, 1.0])), dtype=torch.float64)
    top_k = torch.tensor(column(st.sampled_from([0, 1, 5])))
    greedy = torch.tensor(column(st.booleans()))
    drawn = torch.tensor(column(st.floats(0, 1, exclude_max=True)), dtype=torch.float64)
    together = sample(logits, drawn, SamplingOptions(temperature, top_p, top_k, greedy, True, True, True), None)
    for row in range(n):
        one = slice(row, row + 1)
        tempered, cut = temperature[row].item() != 1, top_p[row].item() < 1 or top_k[row].item() > 0
        alone = SamplingOptions(temperature[one], top_p[one], top_k[one], greedy[one], tempered, cut, bool(greedy[row]))
        token, logprob = sample(logits[one], drawn[one], alone, None)
        assert token.item() == together[0][row].item()
        finite = logits[row][logits[row].isfinite()].abs().max() / temperature[row]
        rounding = torch.finfo(torch.float32).eps * (finite.item() + math.log(logits.shape[1]))
        assert logprob.item() == pytest.approx(together[1][row].item(), rel=1e-6, abs=2 * rounding)


@pytest.mark.parametrize("choice", [{}, {"top_k": 2}, {"top_p": 0.5}, {"greedy": True}])
def test_logprobs_are_those_of_the_tempered_distribution_over_allowed_tokens_before_it_is_cut(choice):
    row = torch.tensor([1.0, -0.5, 2.0, 0.2], dtype=torch.float64)
    grid = (torch.arange(50, dtype=torch.float64) + 0.5) / 50
    drawn, logprobs = sample(row.expand(50, -1), grid, options(50, temperature=0.7, **choice), None)
    torch.testing.assert_close(logprobs, (row / 0.7).log_softmax(-1)[drawn])
    banned = torch.tensor([False, False, True, False])
    drawn, logprobs = sample(row.expand(50, -1), grid, options(50, temperature=0.7, **choice), banned.expand(50, -1))
    assert 2 not in drawn
    torch.testing.assert_close(logprobs, (row / 0.7).masked_fill(banned, -math.inf).log_softmax(-1)[drawn])


def test_the_frequency_penalty_counts_the_tokens_of_each_completion():
    logits = torch.zeros(3, 5)
    token_ids = torch.tensor([[1, 1, 3], [1, 2, 4], [0, 0, 0]])
    penalised = penalise_frequency(
        logits, token_ids, torch.tensor([3, 2, 0]), torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    )
    assert penalised.tolist() == [[0, -1.0, 0, -0.5, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]


def test_greedy_takes_the_first_of_the_most_probable_tokens():
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0]])
    token, _ = sample(logits, torch.tensor([0.99], dtype=torch.float64), options(1, greedy=True), None)
    assert token.item() == 1


def test_logits_that_are_not_finite_give_logprobs_that_are_not_finite():
    for bad in (math.nan, math.inf):
        logits = torch.tensor([[0.0, bad, 1.0]])
        token, logprob = sample(logits, torch.tensor([0.5], dtype=torch.float64), options(1), None)
        assert 0 <= token.item() < 3
        assert not math.isfinite(logprob.item())
