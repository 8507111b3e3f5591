"""``archon serve``: serve the model in a checkpoint folder over HTTP."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from archon_core.contracts.engine_config import DTYPE
from archon_core.errors import ConfigError

HIGHEST_PORT = 65535
LEAST_TTL = 1.0


def serve(
    model: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="Checkpoint folder in Hugging Face format, or hub id; or a config.json, whose weights come later.",
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 0,
    layout: Annotated[str, typer.Option(help="Engine and ranks: archon:t2 shares every layer.")] = "archon:t1",
    max_batch_size: Annotated[int, typer.Option(help="Largest number of sequences to decode at once.")] = 256,
    dtype: Annotated[str | None, typer.Option(help="Compute type, such as float64.", show_default=False)] = None,
    run_as: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Model plugin to run it with, such as hf. Default: the one for its model type.",
            show_default=False,
        ),
    ] = None,
    version: Annotated[int, typer.Option(help="Version of the weights, which tokens are labelled with.")] = 0,
    record: Annotated[
        Path | None, typer.Option(help="Write the server's address and id to this file when it is ready.")
    ] = None,
    drain_seconds: Annotated[
        float, typer.Option(help="Time for requests to finish after Ctrl-C; then they end with what they have.")
    ] = 30.0,
    announce: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Announce the server to the trainer of a run: the run's YAML file, or its run folder.",
            show_default=False,
        ),
    ] = None,
    announce_host: Annotated[
        str | None,
        typer.Option(
            help="Host name or address under which the trainer reaches this machine. Default: --host, or the machine's "
            "own address for 0.0.0.0.",
            show_default=False,
        ),
    ] = None,
    announce_ttl: Annotated[
        float, typer.Option(help="Seconds after which the announcement of a killed server expires.")
    ] = 15.0,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[OVERRIDES]...", help="With --announce: overrides of the file, as for archon train."),
    ] = None,
) -> None:
    """Serve the model in a checkpoint folder over HTTP.

    Requests need the header 'Authorization: Bearer TOKEN'. The token is the environment variable ARCHON_SERVER_TOKEN;
    without it, the server takes the token of the run folder with --announce, or chooses one and prints it. Routes:
    /v1/completions and /v1/chat/completions as OpenAI has them, /v1/models, /generate for token ids, /state, /health.
    """
    for name, value, least in (("--max-batch-size", max_batch_size, 1), ("--version", version, 0)):
        if value < least:
            raise ConfigError(f"{name}: found {value}; allowed are numbers from {least}")
    if announce_ttl < LEAST_TTL:
        raise ConfigError(f"--announce-ttl: found {announce_ttl:g}; allowed are numbers from {LEAST_TTL:g}")
    if overrides and announce is None:
        raise ConfigError(f"found {overrides[0]!r} without --announce; add --announce RUN.yaml, or leave it out")
    if not 0 <= port <= HIGHEST_PORT:
        raise ConfigError(f"--port: found {port}; allowed are 0, for any free one, to {HIGHEST_PORT}")
    if dtype is not None and (allowed := DTYPE(dtype)) is not None:
        raise ConfigError(f"--dtype: found {dtype!r}; allowed are {allowed}")
    if record is not None and not record.absolute().parent.is_dir():
        raise ConfigError(f"--record: found no folder {record.absolute().parent}; create it, or choose another file")
    run = None
    if announce is not None:
        from archon_rollout.registries.run_place import find_run

        run = find_run(announce, overrides or ())
        run.discovery.check_announcing()
    # Imported late: torch takes seconds, and the errors above should not wait for it.
    from archon_rollout.server.model import ServedModel, parse_server_layout
    from archon_rollout.server.process import ServeOptions, serve

    serve(
        ServeOptions(
            model=ServedModel.find(model, dtype=dtype, run_as=run_as),
            layout=parse_server_layout(layout),
            host=host,
            port=port,
            max_batch_size=max_batch_size,
            version=version,
            record=record,
            drain_seconds=drain_seconds,
            run=run,
            announce_host=announce_host,
            announce_ttl=announce_ttl,
        )
    )
    # Without the interpreter's shutdown, which takes seconds with torch loaded, while a trainer waits for this process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
