"""``archon doctor``: checks Python, torch, devices, plugins and versions, with a fix for every problem.

``--cluster`` compares the ranks of a layout (``archon_core.cluster``).
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from archon_core import __version__
from archon_core.cli.console import print_json
from archon_core.cli.findings import Finding, print_findings
from archon_core.errors import ConfigError
from archon_core.plugins import PLUGIN_API, Registry, build_registry
from archon_core.plugins.discovery import discover
from archon_core.plugins.hints import FIRST_STEPS
from archon_core.tested_versions import TESTED_VERSIONS


def doctor(
    cluster: Annotated[
        bool,
        typer.Option("--cluster", help="Compare all ranks of a layout: versions, clocks, shared folder, network."),
    ] = False,
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="LAYOUT",
            help="With --cluster: the layout, such as archon:d2t2. Its ranks start on this machine, unless torchrun or "
            "srun started this process as a rank; then the default is d with all ranks.",
            show_default=False,
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="With --cluster: the folder that all machines share, the run's cluster.fileroot. Default: runs.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="With --cluster: time limit of the wait for ranks. Default: 120.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check Python, torch, devices, plugins and versions. Exit code 1 if something does not work."""
    if cluster:
        from archon_core.cluster.command import DEFAULT_FOLDER, DEFAULT_TIMEOUT, examine

        seconds = DEFAULT_TIMEOUT if timeout is None else timeout
        raise typer.Exit(examine(layout, folder or DEFAULT_FOLDER, timeout=seconds, as_json=as_json))
    for option, value in (("--layout", layout), ("--folder", folder), ("--timeout", timeout)):
        if value is not None:
            raise ConfigError(f"{option}: found without --cluster; add --cluster, or leave it out")
    # Strict mode would stop at the first broken plugin; doctor reports all of them.
    environment = {name: value for name, value in os.environ.items() if name != "ARCHON_STRICT_PLUGINS"}
    registry = build_registry(discover(), environment)
    findings = [
        *examine_python(),
        *examine_torch(needed_by=distributions_that_need("torch", registry)),
        *examine_plugins(registry),
        *examine_versions(TESTED_VERSIONS, installed_version),
    ]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_findings(findings)
    if any(finding.state == "failure" for finding in findings):
        raise typer.Exit(1)


def examine_python() -> Iterator[Finding]:
    """The interpreter, Archon's version, and the host."""
    yield Finding("Python", "ok", f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable})")
    yield Finding("archon-core", "ok", f"{__version__}, plugin API {'.'.join(map(str, PLUGIN_API))}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = f", {_host_memory() / 2**30:.0f} GiB" if _host_memory() else ""
    yield Finding("host", "ok", f"{platform.system()} {platform.machine()}, {cores} cores{memory}")


def examine_torch(*, needed_by: Sequence[str]) -> Iterator[Finding]:
    """torch's build, its devices and its collective backends.

    Args:
        needed_by: installed distributions that depend on torch. Without any, a missing torch is only a note.
    """
    try:
        import torch
    except Exception as error:  # a damaged installation may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == "torch" and not needed_by:
            yield Finding(
                "torch",
                "note",
                "not installed; no installed package needs it",
                "for training: pip install archon-train",
            )
            return
        advice = 'install it: pip install "torch>=2.11"' + (f" (for {', '.join(needed_by)})" if needed_by else "")
        yield Finding("torch", "failure", f"does not import: {type(error).__name__}: {error}", advice)
        return
    build = torch.version.cuda or torch.version.hip
    yield Finding(
        "torch", "ok", f"{torch.__version__} ({f'built for {build}' if build else 'no GPU support built in'})"
    )
    yield from _examine_devices(torch, build)
    backends = [
        name
        for name, available in (
            ("gloo", torch.distributed.is_available() and torch.distributed.is_gloo_available()),
            ("nccl", torch.distributed.is_available() and torch.distributed.is_nccl_available()),
        )
        if available
    ]
    if backends:
        yield Finding("collectives", "ok", ", ".join(backends))
    else:
        yield Finding(
            "collectives", "note", "none in this build of torch", "one process works; for more, install another build"
        )


def _examine_devices(torch: Any, build: str | None) -> Iterator[Finding]:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            yield Finding(f"device {index}", "ok", f"{device.name}, {device.total_memory / 2**30:.0f} GiB")
    elif torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator().type
        yield Finding(
            "devices", "note", f"{torch.accelerator.device_count()} {kind}", "Archon is tested on CPU and CUDA"
        )
    elif build:
        yield Finding(
            "devices",
            "note",
            f"torch is built for {build}, but sees no device",
            "check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES; runs take the CPU",
        )
    else:
        yield Finding("devices", "ok", "CPU only")


def examine_plugins(registry: Registry) -> Iterator[Finding]:
    """Each plugin that is not loaded or has a problem, and a line with the loaded ones."""
    for plugin in registry.plugins:
        subject = f"plugin {plugin.name}"
        if plugin.status == "disabled":
            yield Finding(subject, "note", f"{plugin}: disabled", plugin.cause)
        elif plugin.status != "loaded":
            yield Finding(subject, "failure", f"{plugin}: {plugin.status}", plugin.cause)
        for problem in plugin.problems:
            yield Finding(subject, "failure", str(plugin), problem)
    for problem in registry.problems:
        yield Finding("plugins", "note", problem)
    if len(registry.plugins) == 1:
        yield Finding("plugins", "note", "none but core's own", FIRST_STEPS)
        return
    loaded = [plugin.name for plugin in registry.plugins if plugin.status == "loaded"]
    yield Finding("plugins", "ok", f"loaded: {', '.join(loaded)}")


def examine_versions(tested: Mapping[str, str], installed: Callable[[str], str | None]) -> Iterator[Finding]:
    """Differences from the versions that this release was tested with.

    Args:
        tested: distribution -> version.
        installed: returns a distribution's version, or ``None`` if it is not installed.
    """
    differing = 0
    for name, version in tested.items():
        found = installed(name)
        # 2.13.0+cpu and 2.13.0+cu130 are builds of one version.
        if found is not None and found.partition("+")[0] != version:
            differing += 1
            yield Finding(name, "note", f"{found}, tested with {version}", f'pip install "{name}=={version}"')
    if not differing:
        yield Finding("versions", "ok", "as tested with this release")


def distributions_that_need(name: str, registry: Registry) -> list[str]:
    """The distributions of installed plugins that depend on ``name``, without extras."""
    needing = []
    for distribution in dict.fromkeys(plugin.distribution for plugin in registry.plugins):
        try:
            requirements = importlib.metadata.requires(distribution) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        if any(
            re.match(rf"{name}(?![\w.-])(?!.*\bextra\b)", requirement, re.IGNORECASE) for requirement in requirements
        ):
            needing.append(distribution)
    return needing


def installed_version(name: str) -> str | None:
    """The version of a distribution; ``None`` if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _host_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return 0
