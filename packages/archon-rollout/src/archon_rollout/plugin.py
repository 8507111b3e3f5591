"""Plugin registration of archon-rollout. Imports no torch: targets are loaded on use."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.plugins import (
    CommandSpec,
    InferenceEngineSpec,
    ServerDriverSpec,
    ServerRegistrySpec,
    WeightTransportSpec,
    hookimpl,
)

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
            scorer="archon_rollout.served.scoring_engine:ScoringServers",
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
            target="archon_rollout.transports.broadcasting:distributed_transport",
            receiver="archon_core.receiving.distributed:DistributedReceiver",
            summary="over the network: a gloo group of two per server, or one NCCL broadcast to all",
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
            transports=("shm", "disk", "distributed", "ipc"),
            one_rank=("distributed", "ipc"),
            adapters=True,
        )
    ]


@hookimpl
def archon_registries() -> Iterable[ServerRegistrySpec]:
    return [
        ServerRegistrySpec(
            name="folder",
            aliases=("nfs",),
            target="archon_rollout.registries.folder:folder_registry",
            summary="a file per server in a folder that all hosts share",
        ),
        ServerRegistrySpec(
            name="static",
            target="archon_rollout.registries.addresses:static_registry",
            summary="the servers of rollout.addresses, and no others",
            entries="addresses",
        ),
        ServerRegistrySpec(
            name="dns",
            target="archon_rollout.registries.addresses:dns_registry",
            summary="all addresses of the host names in rollout.addresses, looked up again and again",
            entries="addresses",
        ),
        ServerRegistrySpec(
            name="memory",
            target="archon_rollout.registries.memory:memory_registry",
            summary="the trainer's memory: servers of other processes are not found",
            entries="own",
        ),
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
        CommandSpec(
            name="servers",
            target="archon_rollout.servers_cli:servers",
            summary="Show the inference servers of a run: state, version, tokens per second, last error",
        ),
    ]
