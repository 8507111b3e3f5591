"""Plugin registration of archon-train: ``archon train``, metrics loggers and AReaL's dialect. Imports no torch."""

from __future__ import annotations

from archon_core.plugins import CommandSpec, ConfigSection, DialectSpec, LoggerSpec, hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            name="train", target="archon_train.cli.train:train", summary="Run the training that a YAML file describes."
        )
    ]


@hookimpl
def archon_loggers() -> list[LoggerSpec]:
    return [
        LoggerSpec(
            name="tensorboard",
            target="archon_train.loggers.tensorboard:TensorBoardLogger",
            summary="files for TensorBoard in the run folder",
            modules=(("tensorboard", '"archon-train[tensorboard]"'),),
            optional=True,
            config=(ConfigSection("stats_logger.tensorboard", "archon_train.loggers.options:TensorBoardOptions"),),
        ),
        LoggerSpec(
            name="wandb",
            target="archon_train.loggers.wandb:WandbLogger",
            summary="Weights & Biases, online or offline",
            modules=(("wandb", '"archon-train[wandb]"'),),
            off="mode=disabled",
            config=(ConfigSection("stats_logger.wandb", "archon_train.loggers.options:WandbOptions"),),
        ),
        LoggerSpec(
            name="swanlab",
            target="archon_train.loggers.swanlab:SwanlabLogger",
            summary="SwanLab, in the cloud or in local files",
            modules=(("swanlab", '"archon-train[swanlab]"'),),
            off="mode=disabled",
            config=(ConfigSection("stats_logger.swanlab", "archon_train.loggers.options:SwanlabOptions"),),
        ),
        LoggerSpec(
            name="trackio",
            target="archon_train.loggers.trackio:TrackioLogger",
            summary="Trackio, on this machine or in a Space",
            modules=(("trackio", '"archon-train[trackio]"'),),
            off="mode=disabled",
            config=(ConfigSection("stats_logger.trackio", "archon_train.loggers.options:TrackioOptions"),),
        ),
        LoggerSpec(
            name="prometheus",
            target="archon_train.loggers.prometheus:PrometheusLogger",
            summary="the latest numbers over HTTP, for Prometheus",
            modules=(("prometheus_client", '"archon-train[prometheus]"'),),
            off="port=null",
            config=(ConfigSection("stats_logger.prometheus", "archon_train.loggers.options:PrometheusOptions"),),
        ),
    ]


@hookimpl
def archon_dialects() -> list[DialectSpec]:
    return [DialectSpec(name="areal", target="archon_train.areal:DIALECT", summary="AReaL's YAML files")]
