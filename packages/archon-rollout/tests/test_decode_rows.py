import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from archon_core.contracts.rollout import GenerationConfig
from archon_core.errors import TrainingError
from archon_rollout.admission import Sample
from archon_rollout.decode_rows import DecodeRows
from archon_rollout.row_moves import plan_moves

GREEDY = GenerationConfig(greedy=True, max_new_tokens=3, stop_token_ids=[4])


def make_sample(number: int, config: GenerationConfig = GREEDY, prompt_length: int = 2, decode=None) -> Sample:
    return Sample(0, number, number, prompt_length, config.max_new_tokens, config, decode)


def logits_for(tokens: list[int]) -> torch.Tensor:
    """Logits whose most probable tokens are ``tokens``."""
    return torch.nn.functional.one_hot(torch.tensor(tokens), 6).float() * 3


@given(st.lists(st.booleans(), max_size=40))
def test_rows_that_go_on_close_ranks_with_the_fewest_moves(finished):
    moves = plan_moves(finished)
    rows = list(range(len(finished)))
    for source, destination in zip(moves.sources, moves.destinations, strict=True):
        assert finished[destination]
        rows[destination] = source
    assert sorted(rows[: moves.n_left]) == [row for row, done in enumerate(finished) if not done]
    assert len(moves.sources) == sum(finished[: moves.n_left])


def test_rows_end_at_stop_tokens_and_limits_and_the_others_keep_their_state():
    samples = [make_sample(number) for number in range(4)]
    rows = DecodeRows(samples, max_rows=4, device=torch.device("cpu"))
    rows.append(samples[:3], [7, 7, 7])
    assert rows.advance(logits_for([1, 2, 3]))[0] == []
    rows.begin_step(version=8)
    ended, moves = rows.advance(logits_for([4, 2, 1]))
    assert [(s.number, c.token_ids, c.versions, c.stop_reason) for s, c in ended] == [(0, (1, 4), (7, 8), "stop")]
    assert (moves.sources, moves.destinations) == ((2,), (0,))
    assert rows.last_tokens.tolist() == [1, 2], "the last row took the place of the one that ended"
    rows.append(samples[3:], [9])
    assert rows.advance(logits_for([5]), start=2)[0] == []
    assert rows.positions.tolist() == [3, 3, 2]
    assert rows.longest == 4
    rows.begin_step(version=9)
    ended, _ = rows.advance(logits_for([3, 3, 4]))
    outputs = {s.number: (c.token_ids, c.versions, c.stop_reason) for s, c in ended}
    assert outputs == {
        1: ((2, 2, 3), (7, 8, 9), "length"),
        2: ((3, 1, 3), (7, 8, 9), "length"),
        3: ((5, 4), (9, 9), "stop"),
    }
    assert rows.n_active == 0


def test_a_stop_token_at_the_limit_counts_as_a_stop():
    sample = make_sample(0, GenerationConfig(greedy=True, max_new_tokens=1, stop_token_ids=[4]))
    rows = DecodeRows([sample], max_rows=1, device=torch.device("cpu"))
    rows.append([sample], [0])
    [(_, completion)], _ = rows.advance(logits_for([4]))
    assert completion.stop_reason == "stop"


def test_stop_tokens_cannot_be_drawn_before_the_minimum():
    config = GenerationConfig(greedy=True, max_new_tokens=4, min_new_tokens=2, stop_token_ids=[4, 5])
    other = GenerationConfig(greedy=True, max_new_tokens=4, stop_token_ids=[0])
    samples = [make_sample(0, config), make_sample(1, other)]
    rows = DecodeRows(samples, max_rows=2, device=torch.device("cpu"))
    rows.append(samples, [0, 0])
    stops_first = torch.tensor([[0.0, 0, 0, 1, 3, 2]] * 2)
    for _ in range(2):
        assert rows.advance(stops_first)[0] == []
        assert rows.last_tokens.tolist() == [3, 4], "tokens that stop another row are not banned in this one"
        rows.begin_step(version=0)
    [(_, completion)], _ = rows.advance(stops_first)
    assert completion.token_ids == (3, 3, 4)
    # Of the distribution that was drawn from: without the banned tokens at first, with all tokens in the end.
    assert completion.logprobs[0] == pytest.approx(stops_first[0, :4].log_softmax(-1)[3].item())
    assert completion.logprobs[2] == pytest.approx(stops_first[0].log_softmax(-1)[4].item())


def test_a_stop_text_ends_its_row_alone_and_moves_with_it():
    def letters(ids):
        return "".join("abcdef"[i] for i in ids)

    ending = GenerationConfig(greedy=True, max_new_tokens=4, stop=["cd", "f"])
    late = GenerationConfig(greedy=True, max_new_tokens=4, stop=["bc"], min_new_tokens=2)
    free = GenerationConfig(greedy=True, max_new_tokens=1)
    samples = [make_sample(number, config, decode=letters) for number, config in enumerate((free, ending, late))]
    rows = DecodeRows(samples, max_rows=3, device=torch.device("cpu"))
    rows.append(samples, [0, 0, 0])
    ended, moves = rows.advance(logits_for([0, 2, 1]))
    assert [(s.number, c.stop_reason) for s, c in ended] == [(0, "length")]
    assert moves.destinations == (0,), "the last row moved, with the text that it has so far"
    rows.begin_step(version=0)
    ended, _ = rows.advance(logits_for([2, 3]))
    assert [(s.number, c.token_ids, c.stop_reason) for s, c in ended] == [(1, (2, 3), "stop")]
    for token in (1, 2):
        rows.begin_step(version=0)
        ended, _ = rows.advance(logits_for([token]))
    assert [(s.number, c.token_ids, c.stop_reason) for s, c in ended] == [(2, (1, 2, 1, 2), "stop")]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(bad):
    sample = make_sample(0, GenerationConfig(max_new_tokens=2))
    rows = DecodeRows([sample], max_rows=1, device=torch.device("cpu"))
    rows.append([sample], [0])
    with pytest.raises(TrainingError, match=r"found NaN or infinity.*check the weights"):
        rows.advance(torch.tensor([[0.0, bad, 0.0]]))
