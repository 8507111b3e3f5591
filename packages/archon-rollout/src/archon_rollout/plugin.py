"""Plugin registration of archon-rollout. Imports no torch: targets are loaded on use."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.plugins import CommandSpec, InferenceEngineSpec, WeightTransportSpec, hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_inference_engines() -> Iterable[InferenceEngineSpec]:
    return [
        InferenceEngineSpec(
            name="local",
            target="archon_rollout.local_engine:LocalEngine",
            summary="samples on the trainer's own module, with a KV cache; needs no server",
            letters="",
        )
    ]


@hookimpl
def archon_weight_transports() -> Iterable[WeightTransportSpec]:
    return [
        WeightTransportSpec(
            name="disk",
            target="archon_rollout.transports.disk:DiskTransport",
            receiver="archon_rollout.receiving.disk:DiskReceiver",
            summary="a Hugging Face folder per version on a shared file system; any server can read it",
        ),
        WeightTransportSpec(
            name="shm",
            target="archon_rollout.transports.shared_memory:SharedMemoryTransport",
            receiver="archon_rollout.receiving.shared_memory:SharedMemoryReceiver",
            summary="shared memory on the trainer's host, one copy per side",
            one_host=True,
        ),
        WeightTransportSpec(
            name="distributed",
            aliases=("xccl",),
            target="archon_rollout.transports.distributed:DistributedTransport",
            receiver="archon_rollout.receiving.distributed:DistributedReceiver",
            summary="a process group of two per server and version, over the network",
        ),
    ]


@hookimpl
def archon_commands() -> Iterable[CommandSpec]:
    return [
        CommandSpec(
            name="generate",
            target="archon_rollout.cli:generate",
            summary="Complete prompts with the model in a checkpoint folder",
        )
    ]
