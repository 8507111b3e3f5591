import pytest
import torch

from archon_core.contracts.batch import (
    NO_TARGET,
    ROUTED_EXPERTS,
    Batch,
    align_to_predictions,
)
from archon_core.contracts.loss import OutputRequest
from archon_core.errors import DataError
from archon_engine.data.micro_batch import build_micro_batch


@pytest.fixture
def batch():
    return Batch.from_sequences(
        [[1, 2, 3], [4], [5, 6]],
        token_fields={"mask": [[1.0, 1.0, 0.0], [0.0], [1.0, 0.0]]},
        sequence_fields={"reward": torch.tensor([0.1, 0.2, 0.3])},
    )


def test_targets_are_the_next_tokens_of_the_same_sequence(batch):
    assert batch.targets.tolist() == [2, 3, NO_TARGET, NO_TARGET, 6, NO_TARGET]


def test_select_takes_sequences_with_all_their_fields_in_the_order_asked(batch):
    picked = batch.select([2, 0])
    assert picked.input_ids.tolist() == [5, 6, 1, 2, 3]
    assert picked.lengths == (2, 3)
    assert picked.token_fields["mask"].tolist() == [1, 0, 1, 1, 0]
    assert picked.sequence_fields["reward"].tolist() == pytest.approx([0.3, 0.1])


def test_batches_are_concatenated_with_all_their_fields(batch):
    whole = Batch.concatenate([batch.select([2]), batch.select([]), batch.select([0, 1])])
    other = batch.select([2, 0, 1])
    assert (whole.lengths, whole.input_ids.tolist()) == (other.lengths, other.input_ids.tolist())
    assert torch.equal(whole.token_fields["mask"], other.token_fields["mask"])
    assert torch.equal(whole.sequence_fields["reward"], other.sequence_fields["reward"])


def test_values_per_token_move_to_the_position_that_predicts_the_token():
    assert align_to_predictions(torch.tensor([1.0, 2, 3, 4, 5]), (3, 2)).tolist() == [2, 3, 0, 5, 0]


def test_sums_per_sequence(batch):
    assert batch.sum_per_sequence(torch.arange(6.0)).tolist() == [3, 3, 9]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": (2, 0)}, "found a sequence of 0 tokens"),
        ({"lengths": (1,)}, r"found input_ids of shape \(2,\) with lengths that sum to 1"),
        ({"lengths": (2,), "token_fields": {"mask": torch.zeros(3)}}, r"found token field 'mask' of shape \(3,\)"),
        ({"lengths": (2,), "sequence_fields": {"reward": torch.zeros(2)}}, "sequence field 'reward'"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        Batch(input_ids=torch.tensor([1, 2]), **arguments)


def test_padding_is_a_sequence_of_its_own_that_predicts_nothing(batch):
    micro_batch = build_micro_batch(batch, [0, 2], OutputRequest(), multiple=4)
    assert micro_batch.packed.lengths == (3, 2, 3)
    assert micro_batch.packed.cu_seqlens.tolist() == [0, 3, 5, 8]
    assert micro_batch.packed.positions.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert micro_batch.packed.head.targets.tolist() == [2, 3, -1, 6, -1, -1, -1, -1]
    assert micro_batch.whole_outputs({"logprobs": torch.arange(8.0)})["logprobs"].tolist() == [0, 1, 2, 3, 4]


def test_a_micro_batch_without_sequences_is_padding_only(batch):
    micro_batch = build_micro_batch(batch, [], OutputRequest(), multiple=4)
    assert micro_batch.packed.lengths == (4,)
    assert len(micro_batch.batch) == 0


def test_a_micro_batch_brings_the_experts_that_tokens_went_to_if_they_are_to_go_there_again(batch):
    went = torch.arange(6 * 3 * 2, dtype=torch.int16).view(6, 3, 2)
    batch = batch.with_fields({ROUTED_EXPERTS: went})
    built = build_micro_batch(batch, [2, 0], OutputRequest(), multiple=4, replays_routing=True)
    assert torch.equal(built.packed.experts, torch.cat((went[4:], went[:3], torch.zeros(3, 3, 2, dtype=torch.int16))))
    assert built.packed.experts.dtype == torch.int16
    assert build_micro_batch(batch, [2, 0], OutputRequest()).packed.experts is None
    none = build_micro_batch(batch, [], OutputRequest(), multiple=4, replays_routing=True)
    assert none.packed.experts.shape == (4, 3, 2), "a rank without sequences replays padding"
