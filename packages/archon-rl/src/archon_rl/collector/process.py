"""The collector's process. The trainer's first rank starts it, and it ends with it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from archon_core.contracts.data import Dataset
from archon_core.contracts.rollout import GenerationConfig
from archon_core.contracts.serving import ClientRecipe
from archon_core.contracts.spec import load_target
from archon_core.plugins import registry
from archon_rl.agents.checks import workflow_name
from archon_rl.collector.batches import BatchRule, Pace
from archon_rl.collector.messages import error_data, packed, receive
from archon_rl.collector.reward_threads import RewardThreads, reward_threads
from archon_rl.collector.sampling import GroupSampler, HeldOutSampler, RunSampler
from archon_rl.collector.service import CollectorService
from archon_rl.collector.states import read_state
from archon_rl.collector.window import GroupWindow
from archon_rl.datasets.cursor import DataCursor
from archon_rl.datasets.records import Split, SubsetDataset
from archon_rl.fingerprint import Fingerprint
from archon_rl.parent import end_with
from archon_rl.preference_encoding import build_encoder
from archon_rl.rewards.trainers_signals import leave_signals_to_trainer
from archon_rl.text_encoding import TextEncoder
from archon_rl.tokenization import load_tokenizer
from archon_rl.trainer.evaluation import evaluation_seeds
from archon_rl.trainer.rollout_batch import rollout_seeds
from archon_rl.workflows.context_limit import ContextLimit
from archon_rl.workflows.own_code import check_code
from archon_rl.workflows.parts import workflow_parts
from archon_rl.workflows.source import workflow_source
from archon_train.experiment import load_config


def main(descriptor: int, trainer: int) -> None:
    """Serve the trainer at the other end of a socket.

    Args:
        descriptor: file descriptor of the socket.
        trainer: process id of the trainer.
    """
    end_with(trainer)  # whatever blocks here: an import, a reward that hangs, a workflow that never awaits
    leave_signals_to_trainer()  # which stops this process
    os.set_inheritable(descriptor, False)  # a process of a workflow must not keep the socket open
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    channel = socket.socket(fileno=descriptor)
    try:
        setup = receive(channel)
        sampler, rewards = _build(setup)
    except EOFError:
        return
    except Exception as error:
        logging.getLogger(__name__).exception("the collector cannot start")
        channel.sendall(packed(error_data(error)))
        return
    try:
        channel.sendall(packed({"ok": None}))
        asyncio.run(_serve(channel, setup, sampler))
    finally:
        if rewards is not None:
            rewards.close()


async def _serve(channel: socket.socket, setup: Mapping[str, Any], sampler: RunSampler) -> None:
    window = GroupWindow(BatchRule(**setup["rule"]), Pace(**setup["pace"]), read_state(setup["state"]))
    reader, writer = await asyncio.open_connection(sock=channel)
    service = CollectorService(window, sampler, sampler.groups.client, sampler.held_out)
    await service.serve(reader, writer)


def _build(setup: Mapping[str, Any]) -> tuple[RunSampler, RewardThreads | None]:
    """The sampler of the run whose configuration ``setup`` names."""
    folder = Path(setup["folder"])
    config = load_config(folder / "config.yaml").config
    dataset = _records(config, "train", setup["kept"])
    encoder = build_encoder(load_tokenizer(folder / "tokenizer"), config.data, config.tokenizer.use_chat_template)
    assert isinstance(encoder, TextEncoder), "pairs of preferences are not sampled"
    recipe = ClientRecipe(**setup["client"])
    rewards = None
    if setup["reward"] is not None:
        rewards = reward_threads(config, Fingerprint(**setup["reward"]), data_ranks=setup["data_ranks"])
    options = GenerationConfig(**setup["options"])
    source = workflow_source(workflow_name(config), registry())
    workflow = source.build(config, workflow_parts(encoder, options, rewards))
    check_code(config, {option: Fingerprint(**one) for option, one in setup["code"].items()}, "a new collector")
    groups = GroupSampler(
        workflow=workflow,
        name=source.name,
        encoder=encoder,
        client=load_target(recipe.target, origin="the inference engine")(recipe.data),
        n_samples=options.n_samples,
        seed_of=rollout_seeds(config.seed),
        algorithm=registry().get("algorithm", config.algorithm).load()(config, []),
        context=ContextLimit(**setup["context"]),
        checks_tokens=config.rollout.check_trajectory_format,
        traces=config.rollout.enable_rollout_tracing,
        keeps_rejected=config.rollout.dump_to_file,
    )
    cursor = DataCursor(len(dataset), config.data.batch_size, config.seed, config.data.shuffle)
    held_out = None if setup["held_out"] is None else _held_out(config, setup["held_out"], groups)
    return RunSampler(dataset, cursor, groups, held_out), rewards


def _held_out(config: Any, setup: Mapping[str, Any], groups: GroupSampler) -> HeldOutSampler:
    """Samples the held-out records with the agents of ``groups``."""
    # Imported here, because other runs need no web server.
    from archon_rl.agents.workflow import AgentWorkflow, agent_evaluation

    options = GenerationConfig(**setup["options"])
    parts = workflow_parts(groups.encoder, options, None)
    assert isinstance(groups.workflow, AgentWorkflow), "other workflows are evaluated on the trainer's ranks"
    sampler = replace(
        groups,
        workflow=agent_evaluation(config, groups.workflow, parts),
        n_samples=options.n_samples,
        seed_of=evaluation_seeds(config.seed),
        algorithm=None,
        context=ContextLimit(**setup["context"]),
        prefix="evaluation-",
    )
    return HeldOutSampler(_records(config, "validation", setup["kept"]), sampler)


def _records(config: Any, split: Split, kept: list[int] | None) -> Dataset:
    """The records of a split that the trainer has kept; ``None`` for all."""
    whole = registry().get("dataset", config.data.dataset).load()(config.data, split=split, seed=config.seed)
    return whole if kept is None else SubsetDataset(whole, kept)
