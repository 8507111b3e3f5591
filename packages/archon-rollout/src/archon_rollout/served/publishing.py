"""Builds the publisher of an engine with servers: transport, canary, and the copy of the weights for newcomers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from archon_core.contracts.engine import TrainEngine
from archon_core.contracts.rollout import RolloutConfig
from archon_core.contracts.serving import ServerDriverSpec
from archon_core.contracts.weight_transport import TransportContext, WeightTransportSpec
from archon_core.errors import ConfigError
from archon_core.layout import Layout
from archon_core.plugins import registry
from archon_core.serving.adapter_versions import versions_in_use
from archon_rollout.model_limits import model_limits
from archon_rollout.publication.canary import Canary
from archon_rollout.publication.publisher import Publisher, PublisherOptions
from archon_rollout.publication.stored import stored_versions
from archon_rollout.publication.warm_up import Warmer
from archon_rollout.receiving.device_memory import has_device_memory
from archon_rollout.served.connection import Connection
from archon_rollout.transports.broadcasting import BACKEND
from archon_rollout.transports.disk import ADAPTER_FOLDERS

CANARY = Canary(prompt_ids=(1, 2, 3))
"""Token ids that every vocabulary has."""


def build_publisher(
    config: RolloutConfig,
    layout: Layout,
    kind: ServerDriverSpec,
    connection: Connection | None,
    *,
    trainer: TrainEngine,
    folder: Path | None,
    run: str,
    bucket_bytes: int | None,
) -> Publisher:
    """The publisher of a rank; the first one's has a transport. Lets newcomers be warmed up, if the options say so.

    Args:
        config: the section ``rollout``, with its transport chosen.
        layout: of the servers.
        kind: of the servers.
        connection: of the first rank; ``None`` on others.
        trainer: provides the weights.
        folder: shared with the servers.
        run: id of the publisher; see ``TransportContext``.
        bucket_bytes: size of the buckets; ``None`` for ``rollout.weight_bucket_mb``.

    Raises:
        ConfigError: the transport needs a device that is not here, or options contradict each other.
    """
    canary = None
    if config.weight_canary:
        canary = replace(CANARY, vocab_size=model_limits(trainer.module).vocab_size)
    options = PublisherOptions(
        bucket_bytes=config.weight_bucket_mb * 2**20 if bucket_bytes is None else bucket_bytes,
        skip_unchanged=config.skip_unchanged or config.use_lora,
        timeout=config.weight_timeout,
        canary=canary,
        interrupts=config.interruption == "abort",
        grace=config.pause_grace_period,
    )
    if connection is None:
        return Publisher(trainer, None, None, options)
    modes = connection.driver.capabilities.pause_modes
    if config.interruption not in modes:
        raise ConfigError(
            f"rollout.interruption: found {config.interruption}; servers of the kind {kind.name} allow "
            f"{', '.join(modes)}; set one of these"
        )
    assert config.weight_transport is not None
    spec = registry().get(WeightTransportSpec, config.weight_transport)
    if spec.device and not has_device_memory():
        allowed = kind.transports_for(layout)
        others = [name for name in allowed if not registry().get(WeightTransportSpec, name).device]
        raise ConfigError(
            f"rollout.weight_transport: found {spec.name}, and no {spec.device} device; allowed here are "
            f"{', '.join(others)}; choose one"
        )
    takes_adapters = config.weight_transport in kind.adapter_folders
    kept = versions_in_use(config.max_head_offpolicyness) if takes_adapters else 0
    context = TransportContext(
        connection.driver,
        run=run,
        folder=folder,
        timeout=options.timeout,
        bucket_bytes=options.bucket_bytes,
        companions=None if connection.architecture is None else connection.architecture.folder,
        options={BACKEND: config.weight_group, ADAPTER_FOLDERS: kept},
    )
    transport = spec.load()(context)
    stored = stored_versions(config, context, transport)
    if stored is not None:
        warmer = Warmer(connection.driver, stored, options.canary, timeout=options.timeout, publisher=run)
        connection.pool.warm_newcomers_by(warmer)
    return Publisher(trainer, connection.driver, transport, options, stored)
