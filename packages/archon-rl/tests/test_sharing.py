"""How ranks share work: plans as pure functions, and that every rank ends up with the result of the whole."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from thread_ranks import run_on_ranks

from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.rollout import Completion, GenerationConfig
from archon_core.errors import DataError, TrainingError
from archon_core.ranks.ranks import DataRanks
from archon_engine.checkpoint.publication import publish_folder
from archon_rl.rewards.calls import make_call
from archon_rl.rewards.checking import NamedReward
from archon_rl.text_encoding import TextEncoder
from archon_rl.tokenization import characters_tokenizer
from archon_rl.trainer.checkpointing import resumed_checkpoint
from archon_rl.trainer.export_check import verify_export
from archon_rl.trainer.rollout_batch import rollout_seeds, sample
from archon_rl.trainer.scoring import Scorer
from archon_rl.trainer.sharing import (
    SharedEngine,
    deal_round_robin,
    map_over_ranks,
    plan_shares,
    plan_tree_shares,
    publish_collectively,
    restore_order,
)
from archon_train.run.folder import RunFolder

LENGTHS = st.lists(st.integers(1, 50), max_size=40)


def data_ranks(ranks) -> DataRanks:
    return DataRanks(ranks.rank, ranks.size, ranks, tuple(range(ranks.size)))


@given(LENGTHS, st.integers(1, 6))
def test_every_sequence_is_in_one_share_and_no_share_is_heavier_than_it_must_be(lengths, n_ranks):
    shares = plan_shares(lengths, n_ranks)
    assert len(shares) == n_ranks
    assert sorted(place for share in shares for place in share) == list(range(len(lengths)))
    assert all(share == sorted(share) for share in shares)
    # Largest first into the emptiest share (Graham, 1969): nobody exceeds the mean by more than one sequence.
    loads = [sum(lengths[place] for place in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths, default=0)


@given(LENGTHS, st.integers(1, 6), st.integers(1, 4))
def test_sequences_that_belong_together_are_in_one_share(lengths, n_ranks, granularity):
    lengths = lengths[: len(lengths) // granularity * granularity]
    for share in plan_shares(lengths, n_ranks, granularity=granularity):
        groups = [place // granularity for place in share]
        assert all(groups.count(group) == granularity for group in groups)


def test_a_batch_that_granularity_does_not_divide_is_refused():
    with pytest.raises(DataError, match=r"mb_spec\.granularity=2: found 3 sequences"):
        plan_shares([1, 1, 1], 2, granularity=2)


def test_ranks_share_the_tokens_of_a_prefix_tree_evenly_and_keep_common_prefixes():
    samples = [[prompt] * 6 + [9, sample] for sample in range(3) for prompt in (1, 2)]
    batch = Batch.from_sequences(samples)
    assert plan_tree_shares(batch, 2) == [[0, 2, 4], [1, 3, 5]]
    assert [len(share) for share in plan_tree_shares(batch, 8)] == [1] * 6 + [0] * 2
    apart = Batch.from_sequences([[first] * (1 + first % 5) for first in range(9)])
    assert plan_tree_shares(apart, 3) == plan_shares(apart.lengths, 3)


@given(st.integers(0, 30), st.integers(1, 6))
def test_what_is_dealt_can_be_put_back_in_order(n_items, n_ranks):
    places = deal_round_robin(n_items, n_ranks)
    assert max(map(len, places)) - min(map(len, places)) <= 1
    assert restore_order(places, places) == list(range(n_items))


@pytest.mark.parametrize("n_items", [0, 1, 2, 7])
def test_each_item_is_worked_on_once_and_all_ranks_know_the_results(n_items):
    worked, calls, results = [], [], {}

    def body(ranks):
        def work(places):
            calls.append(ranks.rank)
            worked.extend(places)
            return [place * place for place in places]

        results[ranks.rank] = map_over_ranks(n_items, work, data_ranks(ranks))

    run_on_ranks(3, body)
    assert sorted(calls) == [0, 1, 2], "also who has nothing to do must enter: work may be collective"
    assert sorted(worked) == list(range(n_items))
    assert set(map(tuple, results.values())) == {tuple(place * place for place in range(n_items))}


class SeededSampler:
    """Completions that depend on prompt and seed alone."""

    def generate(self, requests):
        return [
            [Completion((seed % 7, len(request.prompt_ids)), (-0.5, -0.25), (0, 0), "stop") for seed in request.seeds]
            for request in requests
        ]


@pytest.mark.parametrize("n_records", [1, 2, 5])
@pytest.mark.parametrize("n_ranks", [2, 3])
def test_completions_and_rewards_do_not_depend_on_the_number_of_ranks(n_records, n_ranks):
    encoder = TextEncoder(characters_tokenizer(["0123456789"]), "prompt", "answer")
    records = [{"prompt": "1" * (i + 1), "answer": str(i)} for i in range(n_records)]
    options, seeds = GenerationConfig(n_samples=4), rollout_seeds(3, 5)
    lock, scored, results = threading.Lock(), [], {}

    def reward(prompt, completion, record):
        with lock:
            scored.append((prompt, completion))
        return len(prompt) + len(completion) / 10

    expected = sample(SeededSampler(), encoder, records, options, seeds)
    named = NamedReward("lengths", reward)
    runner = SimpleNamespace(score=lambda calls: [make_call(named, call) for call in calls])
    score = Scorer(runner, encoder, 0.0, note=print)
    expected_rewards = score(expected, when="Step 1").values
    n_completions = len(scored)

    def body(ranks):
        rollout = sample(SeededSampler(), encoder, records, options, seeds, data_ranks(ranks))
        results[ranks.rank] = rollout, score(rollout, data_ranks(ranks), when="Step 1").values

    run_on_ranks(n_ranks, body)
    for rollout, rewards in results.values():
        assert rollout == expected
        assert torch.equal(rewards, expected_rewards)
    assert sorted(scored[n_completions:]) == sorted(scored[:n_completions]), "each completion is scored once"


@dataclass(frozen=True)
class SquaringEngine:
    """Its outputs are functions of the ids; it remembers the batches that it was given."""

    data_ranks: DataRanks
    given: list
    device = torch.device("cpu")

    def forward_batch(self, batch, request):
        self.given.append(batch)
        if not len(batch):
            return {}
        return {
            "logprobs": batch.input_ids.double() ** 2,
            "logits": torch.stack([batch.input_ids, -batch.input_ids], 1),
        }


@pytest.mark.parametrize("lengths", [(4, 1, 3, 2, 2), (3, 1), (5,)], ids=str)
def test_outputs_come_back_in_the_order_of_the_whole_batch_on_every_rank(lengths):
    batch = Batch(torch.arange(sum(lengths)), lengths)
    given = {rank: [] for rank in range(3)}
    results = {}

    def body(ranks):
        engine = SharedEngine(SquaringEngine(data_ranks(ranks), given[ranks.rank]))
        results[ranks.rank] = engine.forward_batch(batch, OutputRequest(("logprobs", "logits")))

    run_on_ranks(3, body)
    for outputs in results.values():
        assert torch.equal(outputs["logprobs"], batch.input_ids.double() ** 2)
        assert torch.equal(outputs["logits"], torch.stack([batch.input_ids, -batch.input_ids], 1))
    shares = [share for [share] in given.values()]
    assert sorted(length for share in shares for length in share.lengths) == sorted(lengths)
    assert max(share.n_tokens for share in shares) < batch.n_tokens or len(lengths) == 1


def test_a_single_rank_passes_its_batch_on_untouched():
    given, batch = [], Batch(torch.arange(3), (2, 1))
    SharedEngine(SquaringEngine(DataRanks(), given)).forward_batch(batch, OutputRequest())
    assert given[0] is batch


def test_a_folder_that_ranks_write_together_is_there_for_all_of_them_afterwards(tmp_path):
    seen = {}

    def body(ranks):
        with publish_collectively(ranks, publish_folder(tmp_path / "final")) as folder:
            (folder / f"of_rank_{ranks.rank}").touch()
            ranks.barrier()
        seen[ranks.rank] = sorted(file.name for file in (tmp_path / "final").iterdir())

    run_on_ranks(3, body)
    assert list(seen.values()) == [["of_rank_0", "of_rank_1", "of_rank_2"]] * 3


def test_a_rank_that_fails_while_writing_leaves_no_folder_and_nobody_waiting(tmp_path):
    def body(ranks):
        with publish_collectively(ranks, publish_folder(tmp_path / "final")):
            if ranks.rank == 1:
                raise OSError("no space left")
            ranks.barrier()

    with pytest.raises(OSError, match="no space left"):
        run_on_ranks(3, body)
    assert list(tmp_path.iterdir()) == []


def test_ranks_resume_from_the_checkpoint_that_the_first_one_sees(tmp_path):
    (tmp_path / "complete" / "checkpoints" / "step-00000004").mkdir(parents=True)
    found = {}

    def body(ranks):
        # A shared disk may show a folder to some machines later than to others.
        folder = RunFolder(tmp_path / ("complete" if ranks.is_first else "late"))
        config = SimpleNamespace(trainer=SimpleNamespace(resume=True))
        found[ranks.rank] = resumed_checkpoint(SimpleNamespace(ranks=ranks, folder=folder, config=config))

    run_on_ranks(2, body)
    assert found == dict.fromkeys(range(2), tmp_path / "complete" / "checkpoints" / "step-00000004")


@pytest.mark.parametrize("error", [0.0, 1e-3])
def test_all_ranks_hear_the_verdict_on_the_export(monkeypatch, tmp_path, error):
    theirs = torch.tensor([[2.0, -1.0], [0.5, 1.0]])
    loaded, raised = [], []

    def transformers_logits(export, batch, dtype):
        loaded.append(threading.current_thread().name)
        return theirs + error

    monkeypatch.setattr("archon_rl.trainer.export_check._transformers_logits", transformers_logits)
    engine = SimpleNamespace(forward_batch=lambda batch, request: {"logits": theirs})

    def body(ranks):
        try:
            verify_export(engine, tmp_path, Batch.from_sequences([[0, 1]]), ranks)
        except TrainingError:
            raised.append(ranks.rank)

    run_on_ranks(3, body)
    assert loaded == ["rank 0"]
    assert sorted(raised) == ([0, 1, 2] if error else [])
