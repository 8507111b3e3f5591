"""The oracle's batches hold the cases that go wrong with many ranks, and are put together again as they were."""

import pytest
import torch

from archon_testing.batches import MASK, STEP_LENGTHS, deal_unevenly, make_batch, token_places
from archon_testing.losses import TARGETS, Counted, oracle_loss


def batch_of(step, **changes):
    return make_batch(step, **{"vocab_size": 50, "longest": 512, "dtype": torch.float64, "seed": 1, **changes})


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("n_sequences", [0, 1, 5, 11])
def test_every_sequence_is_dealt_to_one_rank(n_sequences, n_ranks):
    shares = deal_unevenly(n_sequences, n_ranks)
    assert len(shares) == n_ranks
    assert sorted(i for share in shares for i in share) == list(range(n_sequences))


def test_shares_are_uneven_and_some_are_empty():
    assert [len(share) for share in deal_unevenly(11, 4)] == [6, 3, 1, 1]
    assert [len(share) for share in deal_unevenly(1, 2)] == [1, 0]


@pytest.mark.parametrize("n_ranks", [1, 2, 4, 8])
def test_a_shares_tokens_are_found_in_the_whole_batch(n_ranks):
    batch = batch_of(0)
    places = [token_places(batch, indices) for indices in deal_unevenly(len(batch), n_ranks)]
    for indices, own in zip(deal_unevenly(len(batch), n_ranks), places, strict=True):
        assert torch.equal(batch.input_ids[own], batch.select(indices).input_ids)
    assert sorted(torch.cat(places).tolist()) == list(range(batch.n_tokens))


def test_steps_have_short_and_long_sequences_and_fewer_than_data_ranks():
    assert all(1 in STEP_LENGTHS[step] for step in (0, 2))
    assert max(STEP_LENGTHS[0]) > max(128, 2 * sorted(STEP_LENGTHS[0])[-2])
    assert min(map(len, STEP_LENGTHS)) < 2
    # On four data ranks, one has sequences of which none predicts a token.
    shares = deal_unevenly(len(STEP_LENGTHS[0]), 4)
    assert any(share and all(STEP_LENGTHS[0][i] == 1 for i in share) for share in shares)


def test_a_batch_depends_on_step_and_seed_alone():
    assert torch.equal(batch_of(0).input_ids, batch_of(0, dtype=torch.float32).input_ids)
    assert not torch.equal(batch_of(0).input_ids, batch_of(0, seed=2).input_ids)
    assert batch_of(2).lengths == STEP_LENGTHS[2]


def test_sequences_fit_the_models_positions():
    assert max(batch_of(0, longest=16).lengths) == 16


def test_the_last_position_of_a_sequence_is_never_counted_and_the_first_is():
    batch = batch_of(0)
    ends = torch.tensor(batch.offsets[1:]) - 1
    starts = torch.tensor([o for o, n in zip(batch.offsets, batch.lengths, strict=False) if n > 1])
    assert batch.token_fields[MASK][ends].sum() == 0
    assert batch.token_fields[MASK][starts].min() == 1


@pytest.mark.parametrize("critic", [False, True])
def test_losses_count_their_targets(critic):
    batch, loss = batch_of(0), oracle_loss(critic=critic)
    outputs = {name: -torch.ones(batch.n_tokens, dtype=torch.float64) for name in loss.request.names}
    weight = loss.weights(batch)["token"]
    unit, targets = loss(outputs, batch).metrics[TARGETS]
    assert (unit, targets) == ("token", weight)
    assert loss.counted == Counted(weighed=float(weight), targets=float(weight), n_calls=1)


@pytest.mark.parametrize("critic", [False, True])
def test_losses_and_weights_add_up_over_any_split(critic):
    batch, loss = batch_of(0), oracle_loss(critic=critic)
    generator = torch.Generator().manual_seed(0)
    outputs = {
        name: -torch.rand(batch.n_tokens, dtype=torch.float64, generator=generator) for name in loss.request.names
    }
    whole = loss(outputs, batch)
    weights = loss.weights(batch)
    assert set(whole.terms) == set(weights) == {"token", "sequence"}
    parts = []
    for indices in deal_unevenly(len(batch), 3):
        places = token_places(batch, indices)
        share = batch.select(indices)
        parts.append((loss({name: value[places] for name, value in outputs.items()}, share), loss.weights(share)))
    for unit, term in whole.terms.items():
        assert sum(part.terms[unit] for part, _ in parts) == pytest.approx(term.item(), rel=1e-12)
        assert sum(weight[unit] for _, weight in parts) == weights[unit]
        assert term > 1.0
