"""``archon plan``: memory, traffic and time of a run's engines, and the best layouts, before any device is used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from archon_core.errors import ConfigError
from archon_core.plugins import registry
from archon_plan.chosen_device import DEVICE, device_of, kind_of, ranks_of, read_device
from archon_plan.commands import Output, answer_calibration, answer_request, answer_search
from archon_plan.devices import find_device
from archon_plan.engine_flags import OPTIONS, EngineFlags, request_engine
from archon_plan.request import request_run
from archon_plan.rl_request import Measured

RUN_OPTIONS = ("--prompt-tokens", "--completion-tokens", "--spread")


def plan(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file of a run, in Archon's or AReaL's format.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Options of the file to set, such as actor.backend=archon:d4t2.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Name of a known model (qwen3-8b), a config.json, or a folder with one. With a file: in place of "
            "actor.path.",
        ),
    ] = None,
    layout: Annotated[
        str | None, typer.Option("--layout", metavar="LAYOUT", help="Layout of --model, such as archon:d4p2t2.")
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(
            "--role",
            metavar="ROLE",
            help="Section of --model: actor, critic, ref, teacher, reward_model; default: actor.",
        ),
    ] = None,
    critic: Annotated[bool, typer.Option("--critic", help="Give --model a value head.")] = False,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", min=1, metavar="N", help="Tokens of a micro-batch on each data rank; default: 32768."),
    ] = None,
    n_mbs: Annotated[
        int | None,
        typer.Option("--n-mbs", min=1, metavar="N", help="Micro-batches of a step on each data rank; default: 1."),
    ] = None,
    prompt_tokens: Annotated[
        float | None,
        typer.Option(
            "--prompt-tokens",
            min=1,
            metavar="N",
            help="With an RL run: mean length of a prompt; default: half of the longest.",
        ),
    ] = None,
    completion_tokens: Annotated[
        float | None,
        typer.Option(
            "--completion-tokens",
            min=1,
            metavar="N",
            help="With an RL run: mean length of a completion; default: half of the longest.",
        ),
    ] = None,
    spread: Annotated[
        float | None,
        typer.Option(
            "--spread",
            min=0,
            metavar="SHARE",
            help="With an RL run: standard deviation of lengths of completions over their mean; default: 0.6.",
        ),
    ] = None,
    seq: Annotated[
        int | None,
        typer.Option(
            "--seq",
            min=1,
            metavar="N",
            help="Mean length of sequences; default: 4096, and with a file the longest that it allows.",
        ),
    ] = None,
    sequences: Annotated[
        int | None,
        typer.Option(
            "--sequences",
            min=1,
            metavar="N",
            help="Sequences of a step, on all ranks together; default: as many as fill the micro-batches.",
        ),
    ] = None,
    schedule: Annotated[
        str | None, typer.Option("--schedule", metavar="NAME", help="Pipeline schedule; default: Interleaved1F1B.")
    ] = None,
    ac_mode: Annotated[
        str | None,
        typer.Option(
            "--ac-mode",
            metavar="MODE",
            help="Checkpointing: none, selective, full or memory_budget; default: selective.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="TYPE", help="Compute type; default: bfloat16, and float32 on a CPU."),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", metavar="TYPE", help="adamw, adam, sgd or muon; default: adamw.")
    ] = None,
    offload: Annotated[
        bool | None,
        typer.Option("--offload/--no-offload", help="Keep weights and optimizer in host memory; default: no."),
    ] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Compile blocks; default: yes, and no on a CPU.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="DEVICE", help="Name in the device table, or a device file; default: h100."),
    ] = None,
    figures: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIGURE=NUMBER", help="Replace a figure of the device: efficiency.dense=0.6."),
    ] = None,
    world: Annotated[
        int | None, typer.Option("--world", min=1, metavar="N", help="With --search: number of devices.")
    ] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, metavar="N", help="Machines of the devices.")] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Find the best layouts of --world devices, with the engine of --layout.")
    ] = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with charts.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", metavar="FILE", help="Measure this machine's device, and write a device file."),
    ] = None,
) -> None:
    """Predict memory, traffic and time of a layout, on any machine and without a device.

    [bold]archon plan CONFIG.yaml[/bold] plans every engine of a run. [bold]archon plan --model qwen3-8b --layout
    archon:d4t2c2[/bold] plans one engine. [bold]archon plan --model qwen3-8b --world 64 --search[/bold] finds the best
    layouts.

    Exit codes: 0 fits, 1 does not fit, 2 wrong input or violated constraints.
    """
    output = Output(as_json=as_json, page=html)
    if calibrate is not None:
        if device not in (None, "cuda", "cpu"):
            raise ConfigError(f"--device: found {device!r} with --calibrate; allowed are cuda and cpu; leave it out")
        raise typer.Exit(answer_calibration(calibrate, output, model=model, device_type=device))
    flags = {
        "--layout": layout,
        "--role": role,
        "--critic": critic or None,
        "--tokens": tokens,
        "--n-mbs": n_mbs,
        "--sequences": sequences,
        "--schedule": schedule,
        "--ac-mode": ac_mode,
        "--dtype": dtype,
        "--optimizer": optimizer,
        "--offload": offload,
        "--compile": compile,
    }
    written = {name: value for name, value in flags.items() if value is not None}
    if config is None:
        written |= {"--prompt-tokens": prompt_tokens, "--completion-tokens": completion_tokens, "--spread": spread}
    _check_form(config, model, written, search=search, world=world)
    if config is None:
        assert model is not None, "checked: there is a file or a model"
        chosen = read_device(device or DEVICE, figures or (), nodes=nodes, world=world or ranks_of(layout))
        asked = EngineFlags(
            model=model,
            layout=layout or f"archon:d{world}",
            role=role or "actor",
            critic=critic,
            tokens=tokens,
            n_mbs=n_mbs,
            seq=seq,
            sequences=sequences,
            schedule=schedule,
            ac_mode=ac_mode,
            dtype=dtype,
            optimizer=optimizer,
            offload=offload,
            compile=compile,
        )
        request = request_engine(asked, device=kind_of(chosen))
    else:
        given = None if device is None else kind_of(find_device(device))
        request = request_run(config, overrides or (), registry(), model=model, seq=seq, device=given)
        chosen = device_of(request, device, figures or (), nodes=nodes)
    if search:
        number = world or (ranks_of(request.engines[0].layout) if request.engines else None) or 1
        raise typer.Exit(answer_search(request, chosen, output, world=number))
    measured = Measured(prompt_tokens, completion_tokens, spread)
    raise typer.Exit(answer_request(request, chosen, measured, output))


def _check_form(
    config: Path | None, model: str | None, written: dict[str, object], *, search: bool, world: int | None
) -> None:
    """Check that the options belong together. Raises ConfigError."""
    if config is None and model is None:
        raise ConfigError(
            "archon plan: found neither a file nor --model; use `archon plan CONFIG.yaml`, "
            "`archon plan --model qwen3-8b --layout archon:d4t2`, or "
            "`archon plan --model qwen3-8b --world 64 --search`"
        )
    if config is not None and written:
        name = next(iter(written))
        option = next((option for option, flag in OPTIONS.items() if flag == name), None)
        fix = f"override it: actor.{option}=..." if option else "leave it out: a file has all roles"
        raise ConfigError(f"{name}: found it with a file; allowed with --model alone; {fix}")
    run_options = [name for name in RUN_OPTIONS if written.get(name) is not None]
    if config is None and run_options:
        raise ConfigError(f"{run_options[0]}: found it with --model; allowed with the file of an RL run; leave it out")
    if config is None and not search and "--layout" not in written:
        raise ConfigError(
            "--layout: found none; needed for --model without --search; add --layout archon:d4t2, or --world N --search"
        )
    if world is not None and not search:
        raise ConfigError("--world: found it without --search; a layout has its number of devices; add --search")
    if search and world is None and config is None:
        raise ConfigError("--search: found no --world; needed for the number of devices; add --world 64")
