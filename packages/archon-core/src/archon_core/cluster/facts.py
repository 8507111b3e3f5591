"""What each rank is: its host, its network interface, its device, and the versions of what it runs."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from archon_core.cli.findings import Finding
from archon_core.cluster.naming import by_value, majority, name_ranks
from archon_core.plugins import Registry
from archon_core.tested_versions import TESTED_VERSIONS

MISSING = "not installed"
SOURCES = "sources of"


@dataclass(frozen=True)
class RankFacts:
    """One rank.

    Attributes:
        rank: from 0.
        host: host name.
        interface: network interface of its gloo connections; empty if gloo chooses.
        device: where its tensors are.
        versions: component -> version: Python, distributions, the state and the sources of each plugin, and the GPU.
    """

    rank: int
    host: str
    interface: str
    device: str
    versions: Mapping[str, str]


def own_facts(rank: int, registry: Registry, *, device: str, interface: str) -> RankFacts:
    """The facts of this process."""
    versions = {**own_versions(registry), **device_versions(device)}
    return RankFacts(rank, socket.gethostname(), interface, device, versions)


def own_versions(registry: Registry) -> dict[str, str]:
    """Versions of everything that has to agree between ranks."""
    names = {*TESTED_VERSIONS, *(plugin.distribution for plugin in registry.plugins)}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name and re.match(r"archon[-_]", name, re.IGNORECASE):
            names.add(name.lower().replace("_", "-"))
    found = {"Python": platform.python_version()}
    for name in sorted(names):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for plugin in registry.plugins:
        found[f"plugin {plugin.name}"] = plugin.status
        package = plugin.module.partition(".")[0]
        found[f"{SOURCES} {package}"] = sources_of(package)
    if os.environ.get("ARCHON_DISABLE_PLUGINS"):
        found["ARCHON_DISABLE_PLUGINS"] = os.environ["ARCHON_DISABLE_PLUGINS"]
    return found


def device_versions(device: str) -> dict[str, str]:
    """The model of a GPU and its libraries; empty for the CPU."""
    if device == "cpu":
        return {}
    import torch

    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return {"GPU": torch.cuda.get_device_name(device), "CUDA": str(torch.version.cuda), "NCCL": nccl}


def sources_of(package: str) -> str:
    """A checksum of the Python files of a package: two checkouts of one version may differ. Empty if it has none."""
    spec = importlib.util.find_spec(package)
    folders = sorted(spec.submodule_search_locations or ()) if spec is not None else []
    files = sorted(file for folder in folders for file in Path(folder).rglob("*.py"))
    checksum = hashlib.sha256()
    for file in files:
        checksum.update(file.name.encode() + b"\0" + file.read_bytes())
    return checksum.hexdigest()[:10] if files else ""


def compare_versions(facts: Sequence[RankFacts]) -> Iterator[Finding]:
    """One finding per component that differs, which names the ranks that differ from the others; else one line."""
    hosts = [one.host for one in facts]
    differing = 0
    for component in sorted({name for one in facts for name in one.versions}):
        values = [one.versions.get(component, MISSING) for one in facts]
        ranks_of = by_value(values)
        if len(ranks_of) == 1:
            continue
        differing += 1
        usual = majority(values)
        odd = {value: ranks for value, ranks in ranks_of.items() if value != usual}
        found = "; ".join(f"{value} on {name_ranks(ranks, hosts)}" for value, ranks in odd.items())
        if usual is not None:
            found += f"; {usual} on the other {len(ranks_of[usual])}"
        yield Finding(component, "failure", found, _advice(component, usual, odd, hosts))
    if not differing:
        yield Finding("versions", "ok", f"equal on all ranks: {_short(facts[0].versions)}")


def _advice(component: str, usual: str | None, odd: Mapping[str, list[int]], hosts: Sequence[str]) -> str:
    if usual is None:
        return "install the same versions on all machines"
    where = ", ".join(dict.fromkeys(hosts[rank] for ranks in odd.values() for rank in ranks))
    if component == "Python":
        return f"on {where}: use Python {usual}"
    if component == "ARCHON_DISABLE_PLUGINS":
        return f"on {where}: set {component} as on the other ranks"
    if component.startswith(SOURCES):
        return f"on {where}: install the same build, or the same commit, as on the other machines"
    if component in ("GPU", "CUDA", "NCCL"):
        return f"on {where}: use the same {component} as on the other machines, or leave {where} out"
    if component.startswith("plugin "):
        return f"on {where}: `archon doctor` shows the cause"
    if usual == MISSING:
        return f"on {where}: pip uninstall {component}, or install it on the other machines"
    return f'on {where}: pip install "{component}=={usual.partition("+")[0]}"'


def _short(versions: Mapping[str, str]) -> str:
    shown = [f"{name} {versions[name]}" for name in ("Python", "torch", "archon-core", "GPU") if name in versions]
    return ", ".join([*shown, f"{len(versions) - len(shown)} more"])
