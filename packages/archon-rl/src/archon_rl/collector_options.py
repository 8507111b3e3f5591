"""Options of asynchronous sampling, as runs and dry runs read them. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from archon_core.errors import PluginError, UnknownNameError
from archon_core.plugins import registry
from archon_core.plugins.inference_engines import find_inference_engine
from archon_rl.collector.batches import Pace


def has_servers(config: Any) -> bool:
    """Whether servers sample, so that a collector can use them while the trainer trains."""
    backend = config.rollout.backend.partition(":")[0]
    try:
        return find_inference_engine(registry(), backend).runs_servers
    except (UnknownNameError, PluginError):
        return backend != "local"  # of a package that is missing


def pace_of(config: Any) -> Pace:
    """How far the collector of a run samples ahead."""
    options = config.rollout
    limits = (options.max_concurrent_rollouts, options.queue_size)
    return Pace.with_defaults(options.max_head_offpolicyness, config.data.batch_size, *limits)


def sampling_problems(config: Any, *, reward_role: str | None) -> Iterator[str]:
    """Settings with which a run cannot sample.

    Args:
        config: the run's configuration.
        reward_role: section of the model that the reward runs; empty or ``None`` for none.
    """
    consumed, batch = config.rollout.consumer_batch_size, config.data.batch_size
    if consumed not in (None, batch):
        yield (
            f"rollout.consumer_batch_size: found {consumed}; allowed is data.batch_size={batch}, the number of prompts "
            "that a step consumes; leave it out"
        )
    if not has_servers(config):
        return
    queue, staleness = config.rollout.queue_size, config.rollout.max_head_offpolicyness
    if queue is not None and queue < batch:
        yield (
            f"rollout.queue_size: found {queue}; a step takes data.batch_size={batch} groups; allowed is at least "
            "that; raise it, or leave it out"
        )
    if reward_role and staleness:
        yield (
            f"rollout.max_head_offpolicyness: found {staleness} with reward={config.reward}, a model that scores on "
            "the trainer's ranks, which train meanwhile; allowed is 0; set it, or choose a reward function"
        )
