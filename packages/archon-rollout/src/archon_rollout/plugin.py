"""Plugin registration of archon-rollout. Imports no torch: targets are loaded on use."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.plugins import CommandSpec, InferenceEngineSpec, ServerDriverSpec, WeightTransportSpec, hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_inference_engines() -> Iterable[InferenceEngineSpec]:
    return [
        InferenceEngineSpec(
            name="local",
            target="archon_rollout.local_engine:LocalEngine",
            summary="samples on the trainer's own module, with a KV cache; needs no server",
            letters="",
        ),
        InferenceEngineSpec(
            name="served",
            target="archon_rollout.served.engine:ServedEngine",
            summary="samples on our own servers, which the trainer starts; served:d2t2 has two, of two ranks each",
            letters="dt",
            runs_servers=True,
        ),
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
            receiver="archon_core.receiving.shared_memory:SharedMemoryReceiver",
            summary="shared memory on the trainer's host, one copy per side",
            one_host=True,
        ),
        WeightTransportSpec(
            name="distributed",
            aliases=("xccl",),
            target="archon_rollout.transports.distributed:DistributedTransport",
            receiver="archon_core.receiving.distributed:DistributedReceiver",
            summary="a process group of two per server and version, over the network",
        ),
        WeightTransportSpec(
            name="ipc",
            target="archon_rollout.transports.ipc:IpcTransport",
            receiver="archon_rollout.receiving.ipc:IpcReceiver",
            summary="device memory that servers on the trainer's GPU open by handles",
            one_host=True,
            device="cuda",
        ),
    ]


@hookimpl
def archon_server_drivers() -> Iterable[ServerDriverSpec]:
    return [
        ServerDriverSpec(
            name="served",
            target="archon_rollout.served.driver:ServedDriver",
            summary="archon serve: two copies of the weights, exact log-probabilities across updates",
            letters="dt",
            transports=("shm", "disk", "distributed"),
        )
    ]


@hookimpl
def archon_commands() -> Iterable[CommandSpec]:
    return [
        CommandSpec(
            name="generate",
            target="archon_rollout.cli:generate",
            summary="Complete prompts with the model in a checkpoint folder",
        ),
        CommandSpec(
            name="serve",
            target="archon_rollout.serve_cli:serve",
            summary="Serve the model in a checkpoint folder over HTTP",
        ),
    ]
