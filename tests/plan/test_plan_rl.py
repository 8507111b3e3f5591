"""Plans of RL runs: the overlap follows from the parts, and splits find the balance of servers and trainer."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from unittest.mock import ANY

import pytest

from archon_core import registry
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.errors import ConfigError
from archon_engine.options.archon import ArchonEngineConfig
from archon_plan.constraints import check_engine
from archon_plan.devices import find_device
from archon_plan.engine_plan import plan_engine
from archon_plan.lengths import Lengths
from archon_plan.models import find_model
from archon_plan.parts import EngineRequest, Sequences
from archon_plan.publishing import publication_parts, publication_seconds
from archon_plan.rl import Pass, RLRun, plan_rl
from archon_plan.sampling import Samples
from archon_plan.server import Server
from archon_plan.setting import Setting, Tokens
from archon_plan.splits import divide_devices, scaled_setting, searched_passes
from archon_plan.timing import step_time

H100 = find_device("h100")
SAMPLES = Samples(64, 8, 256.0, Lengths(1500.0, 0.6, 4096))
LENGTH = 1756


def setting(layout: str, *, trains: bool = True, sequences: int = SAMPLES.sequences) -> Setting:
    request = EngineRequest(
        role="actor",
        layout=layout,
        model=find_model("qwen3-8b"),
        config=ArchonEngineConfig(
            gradient_checkpointing=True,
            mb_spec=MicroBatchSpec(max_tokens_per_mb=16_384),
            optimizer=OptimizerConfig() if trains else None,
        ),
        sequences=Sequences(sequences, LENGTH),
    )
    check = check_engine(request, registry())
    assert not check.violations
    return plan_engine(request, check).setting


@pytest.fixture(scope="module")
def run() -> RLRun:
    actor = setting("archon:d8t2", sequences=SAMPLES.sequences // 4)
    reference = setting("archon:d8t2", trains=False)
    server = Server(actor.anatomy, tensor=2, memory_share=0.85)
    return RLRun(
        passes=(Pass("update of the actor", actor, 4), Pass("reference", reference)),
        samples=SAMPLES,
        server=server,
        servers=4,
        staleness=2,
        transport="nccl",
    )


def test_training_is_the_sum_of_its_passes(run: RLRun) -> None:
    plan = plan_rl(run, H100)
    update, reference = (step_time(one.setting, H100).total for one in run.passes)
    assert plan.training == {"update of the actor": 4 * update, "reference": reference}
    # The same tokens cost a forward pass a third of the products, and no optimizer.
    assert 0.2 < reference / (4 * update) < 0.4


def test_a_synchronous_step_is_the_sum_and_a_stale_one_nearly_the_larger_part(run: RLRun) -> None:
    plan = plan_rl(replace(run, staleness=0), H100)
    train = plan.train_seconds + plan.publication
    assert plan.step_seconds == pytest.approx(plan.fleet.batch_seconds + train, rel=0.05), "but for the longest"
    ahead = plan.paces[8]
    assert ahead.seconds == pytest.approx(max(plan.fleet.work, train), rel=0.05)
    steps = [plan.paces[bound].seconds for bound in sorted(plan.paces)]
    for fewer, more in pairwise(steps):
        assert more <= fewer * (1 + 1e-9), "more staleness never makes steps slower"
    assert plan.steps_per_hour == pytest.approx(3600 / plan.step_seconds)


def test_where_the_trainers_ranks_sample_nothing_overlaps(run: RLRun) -> None:
    actor = run.actor
    local = replace(run, colocated=True, servers=8, server=Server(actor.anatomy, tensor=2, max_sequences=256))
    plan = plan_rl(local, H100)
    assert list(plan.paces) == [0]
    assert plan.step_seconds == pytest.approx(
        plan.fleet.batch_seconds + plan.train_seconds + plan.publication, rel=0.05
    )
    # Seven of eight shards of half of the weights arrive over NVLink.
    gathered = 2 * actor.anatomy.n_parameters / 2 * 7 / 8
    bandwidth = H100.network_bandwidth * H100.efficiency.network
    assert plan.publication == pytest.approx(gathered / bandwidth, rel=0.01)


def test_transports_take_as_long_as_their_slowest_part(run: RLRun) -> None:
    size = 2 * run.actor.anatomy.n_parameters
    network = H100.network_bandwidth * H100.efficiency.network

    def seconds(transport: str, servers: int = 4) -> float:
        return publication_seconds(run.actor, H100, transport=transport, servers=servers)  # type: ignore[arg-type]

    assert seconds("gloo") == pytest.approx(4 * size / network), "one connection for each server"
    assert seconds("nccl", 4) == seconds("nccl", 1) == pytest.approx(size / network), "one broadcast"
    assert seconds("disk") == pytest.approx(2 * size / H100.disk_bandwidth), "servers read a complete folder"
    parts = publication_parts(run.actor, H100, transport="shm", servers=1)
    assert seconds("shm") == max(parts.values())
    assert parts["copy to the host"] == pytest.approx(size / H100.host_bandwidth)


def test_the_limit_names_a_publication_that_takes_longest(run: RLRun) -> None:
    plan = plan_rl(replace(run, servers=16, concurrent=256, staleness=4), H100)
    assert plan.publication < plan.train_seconds
    assert plan.limit == "training"
    plan = plan_rl(replace(run, servers=16, transport="disk"), H100)
    assert plan.publication > plan.train_seconds
    assert plan.limit == "publication"


def test_scaling_keeps_the_tokens_of_a_step(run: RLRun) -> None:
    for devices in (2, 4, 8, 32):
        scaled = scaled_setting(run.actor, devices)
        assert scaled is not None
        assert scaled.dims.world_size == devices

        def tokens(one: Setting) -> int:
            return one.tokens.per_micro_batch * one.tokens.n_micro_batches * one.dims.dp_shard

        assert tokens(run.actor) <= tokens(scaled) < 1.15 * tokens(run.actor)
        assert scaled.tokens.per_micro_batch <= run.actor.tokens.per_micro_batch
    assert scaled_setting(run.actor, 7) is None


def test_a_scaled_pipeline_has_the_lists_of_its_micro_batches() -> None:
    for trains in (True, False):
        actor = setting("archon:d4p4", trains=trains)
        scaled = scaled_setting(actor, 8)
        assert scaled is not None
        again = setting("archon:d2p4", trains=trains)
        assert scaled.tokens.n_micro_batches == pytest.approx(again.tokens.n_micro_batches, abs=4)
        assert len(scaled.actions) == 4
        forward = [action for action in scaled.actions[0] if action.kind.value == "F"]
        assert len(forward) == scaled.tokens.n_micro_batches * len(scaled.held_by(0))


def test_the_best_split_balances_sampling_and_training(run: RLRun) -> None:
    splits = divide_devices(run, H100, 32)
    assert {split.servers + split.trainer for split in splits} == {32}
    best = splits[0]
    assert best.plan.step_seconds == min(split.plan.step_seconds for split in splits)
    by_servers = sorted(splits, key=lambda split: split.servers)
    assert 0 < by_servers.index(best) < len(splits) - 1, "neither end is the best"
    fewest, most = by_servers[0].plan, by_servers[-1].plan
    assert fewest.pace.trainer_waits > best.plan.pace.trainer_waits
    assert most.pace.servers_wait > best.plan.pace.servers_wait


def test_a_layout_that_does_not_divide_the_devices_is_searched_for(run: RLRun) -> None:
    """Eight context and tensor ranks fit in ten devices once, beside one server of two."""
    update = setting("archon:c4t2", sequences=SAMPLES.sequences // 4)
    reference = setting("archon:c4t2", trains=False)
    passes = (Pass("update of the actor", update, 4), Pass("reference", reference))
    splits = divide_devices(replace(run, passes=passes), H100, 10)
    assert {split.trainer: split.layout for split in splits} == {8: "archon:t2c4", 4: ANY, 2: ANY, 6: ANY}
    for split in splits:
        planned_update, planned_reference = split.plan.run.passes
        assert planned_update.setting.dims == planned_reference.setting.dims
        assert not planned_reference.setting.trains
        assert planned_update.setting.dims.world_size == split.trainer
        tokens = [
            one.times
            * one.setting.tokens.per_micro_batch
            * one.setting.tokens.n_micro_batches
            * data_ranks(one.setting)
            for one in split.plan.run.passes
        ]
        assert tokens[0] == pytest.approx(SAMPLES.sequences * LENGTH, rel=0.15)
        assert tokens[1] == pytest.approx(tokens[0], rel=0.1)


def test_searched_divisions_keep_the_micro_batches_of_the_run(run: RLRun) -> None:
    """Groups of 3 sequences, and a multiple of 3 micro-batches."""

    def tokens(devices: int, **options: int) -> Tokens:
        found = searched_passes(replace(run, passes=run.passes[:1], **options), H100, devices)
        assert found is not None
        return found[0].setting.tokens

    assert tokens(8).per_micro_batch % (3 * LENGTH)
    assert tokens(8, granularity=3).per_micro_batch % (3 * LENGTH) == 0
    assert tokens(8).n_micro_batches % 3
    assert tokens(8, divisor=3).n_micro_batches % 3 == 0


def test_searched_divisions_of_a_strict_run_pad_as_it_says(run: RLRun) -> None:
    update = run.passes[0]
    passes = (replace(update, setting=replace(update.setting, aligned_to=5)),)
    for strict in (False, True):
        found = searched_passes(replace(run, passes=passes, strict=strict), H100, 6)
        assert found is not None
        assert (found[0].setting.token_multiple == 5) == strict


def data_ranks(setting: Setting) -> int:
    return setting.dims.dp_replicate * setting.dims.dp_shard


def test_devices_that_cannot_be_divided_are_explained(run: RLRun) -> None:
    small = H100.with_figures({"memory": 30e9}, source="test")
    with pytest.raises(ConfigError, match="found 3 for trainer and servers; a server has 2, and no layout"):
        divide_devices(run, small, 3)
