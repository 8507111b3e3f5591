"""The fingerprint of a function: the source of its module, and of the modules that it imports.

A module that this process has not imported is read where an import would find it. So the fingerprint is the same in
every process, and needs no import of code that belongs to another one.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from archon_core.errors import ConfigError
from archon_rl.chosen_function import ChosenFunction, lies_in
from archon_rl.fingerprint import Fingerprint


def function_fingerprint(source: ChosenFunction) -> Fingerprint:
    """The fingerprint of a function.

    It covers the modules of the function's package, or of its folder for a function of a user's own module. Without
    source, for a compiled module, it is the version of the package. A package's module must be imported.
    """
    version = _version(source.origin)
    module, _, attribute = source.target.partition(":")
    sources = _sources(module, source.folder)
    content = {"attribute": attribute, **({"sources": sources} if sources else {"version": version})}
    about = f"{source} of {source.origin or module} {version}".rstrip()
    return Fingerprint.of(content, about)


def check_same(
    found: Fingerprint, expected: Fingerprint, where: str, *, option: str = "reward", accepted: str = "reward"
) -> None:
    """Raise ConfigError if a process has another source of a function than the run started with.

    Args:
        where: the process, for the message.
        option: that names the function.
        accepted: value of ``trainer.accept_changed`` for it.
    """
    if found.digest != expected.digest:
        raise ConfigError(
            f"{option}: found {found} in {where}, and {expected} when the run started; allowed is one source for all "
            f"completions; restore it, or resume with trainer.accept_changed=[{accepted}]"
        )


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution) if distribution else ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def _sources(module: str, folder: str) -> dict[str, str]:
    """Module -> digest of its file, for ``module`` and its transitive imports within the package or folder."""
    package = module.rpartition(".")[0] or module
    waiting, found = [module], {}
    while waiting:
        name = waiting.pop()
        file = None if name in found else _file_of(name, folder)
        source = None if file is None else _read(file)
        if file is None or source is None:
            continue
        found[name] = hashlib.sha256(source).hexdigest()
        for other in _imports(file.package, source):
            waiting += [other] if folder or f"{other}.".startswith(f"{package}.") else []
    return found


@dataclass(frozen=True)
class _File:
    """The file of a module, and the package for its relative imports."""

    path: str
    package: str


def _file_of(name: str, folder: str) -> _File | None:
    """The file of a module, within ``folder`` if there is one; ``None`` for what is no module."""
    module = sys.modules.get(name)
    if module is not None:
        path = getattr(module, "__file__", None)  # none of a built-in module, or of one created at run time
        file = _File(path, getattr(module, "__package__", None) or "") if path else None
    else:
        file = _importable(name, folder) if folder else None
    return file if file is not None and (not folder or lies_in(file.path, folder)) else None


def _importable(name: str, folder: str) -> _File | None:
    """The file where an import would find a module, with ``folder`` last on the search path. Imports nothing."""
    path: Sequence[str] = [*sys.path, folder]
    parts, spec = name.split("."), None
    for n in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:n]), path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    if spec is None or not spec.origin or not spec.has_location:
        return None
    return _File(spec.origin, spec.parent or "")


def _read(file: _File) -> bytes | None:
    try:
        return Path(file.path).read_bytes()
    except OSError:
        return None


def _imports(package: str, source: bytes) -> Iterator[str]:
    """Names that a module's source imports: modules, and some attributes of modules.

    Args:
        package: of the module, for relative imports.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a compiled module
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            try:
                base = importlib.util.resolve_name(relative, package) if node.level else relative
            except ImportError:  # beyond the top: an import of the module fails as well
                continue
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
