"""``archon algorithms``: algorithms, policy losses, and published algorithms as settings. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from archon_core.cli.console import print_json, print_remark, print_table, print_text, remark_on_plugins
from archon_core.errors import ConfigError, did_you_mean
from archon_core.plugins import AlgorithmSpec, PolicyLossSpec, registry
from archon_rl.named_settings import NAMED_SETTINGS, NamedSettings, find_settings


def algorithms(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[PRESET]", help="Print the options of one preset, as overrides of archon train."),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With a preset: leave out the options that this configuration file writes, so that the file wins, and "
            "print the ones with another value to standard error.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List algorithms, policy losses, and presets: published algorithms as options of grpo or ppo.

    archon train run.yaml $(archon algorithms GSPO) trains with the options of a preset, which win over the file. With
    --keep run.yaml, the file wins.
    """
    if keep is not None and (name is None or as_json):
        raise ConfigError(
            "--keep: found without a preset, or with --json; allowed is archon algorithms PRESET --keep FILE"
        )
    if name is not None:
        settings = _named(name)
        if keep is not None:
            _print_beside(settings, keep)
        elif as_json:
            print_json(_data(settings))
        else:
            print_text(" ".join(settings.overrides))
        return
    installed = registry()
    specs, losses = installed.all(AlgorithmSpec), installed.all(PolicyLossSpec)
    if as_json:
        print_json(
            {
                "algorithms": [spec.as_data() | {"package": installed.origin(spec)} for spec in specs],
                "policy_losses": [spec.as_data() | {"package": installed.origin(spec)} for spec in losses],
                "presets": [_data(settings) for settings in NAMED_SETTINGS],
            }
        )
        return
    print_table(
        ("algorithm", "summary", "package"), [(spec.name, spec.summary, installed.origin(spec)) for spec in specs]
    )
    print_text("")
    print_table(
        ("policy loss", "source", "summary", "package"),
        [(spec.name, spec.source, spec.summary, installed.origin(spec)) for spec in losses],
    )
    print_text("")
    print_table(
        ("preset", "source", "summary"),
        [(settings.name, settings.source, settings.summary) for settings in NAMED_SETTINGS],
        details=[settings.overrides for settings in NAMED_SETTINGS],
    )
    remark_on_plugins(installed)


def _print_beside(settings: NamedSettings, file: Path) -> None:
    from archon_rl.preset_options import beside_file
    from archon_train.experiment import load_config

    found = beside_file(settings, load_config(file, allow_missing=True))
    for option, (theirs, ours) in found.kept.items():
        print_remark(f"{option}={theirs}; {settings.name} has {ours}", label=f"kept from {file.name}: ")
    print_text(" ".join(found.overrides))


def _named(name: str) -> NamedSettings:
    settings = find_settings(name)
    if settings is None:
        names = [known.name for known in NAMED_SETTINGS]
        raise ConfigError(
            f"archon algorithms: found {name!r}; allowed are {', '.join(names)}{did_you_mean(name, names)}"
        )
    return settings


def _data(settings: NamedSettings) -> dict:
    return asdict(settings)
