"""The fingerprint of a loaded function: the source of its module, and of the modules that it imports."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from archon_core.errors import ConfigError
from archon_rl.chosen_function import ChosenFunction, is_in
from archon_rl.fingerprint import Fingerprint


def function_fingerprint(source: ChosenFunction) -> Fingerprint:
    """The fingerprint of a function whose module this process has imported.

    It covers the modules of the function's package, or of its folder for a function of a user's own module. Without
    source, for a compiled module, it is the version of the package.
    """
    version = _version(source.origin)
    module, _, attribute = source.target.partition(":")
    sources = _sources(module, source.folder)
    content = {"attribute": attribute, **({"sources": sources} if sources else {"version": version})}
    about = f"{source} of {source.origin or module} {version}".rstrip()
    return Fingerprint.of(content, about)


def check_same(found: Fingerprint, expected: Fingerprint, where: str) -> None:
    """Raise ConfigError if a process has imported another reward than the run started with.

    Args:
        where: the process, for the message.
    """
    if found.digest != expected.digest:
        raise ConfigError(
            f"reward: found {found} in {where}, and {expected} when the run started; allowed is one source for all "
            "completions; restore it, or resume with trainer.accept_changed=[reward]"
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
        source = None if name in found else _file_of(sys.modules.get(name))
        if source is None:
            continue
        found[name] = hashlib.sha256(source).hexdigest()
        for other in _imports(sys.modules[name], source):
            within = is_in(sys.modules.get(other), folder) if folder else f"{other}.".startswith(f"{package}.")
            waiting += [other] if within else []
    return found


def _file_of(module: ModuleType | None) -> bytes | None:
    try:
        return Path(module.__file__ or "").read_bytes() if module is not None else None
    except (AttributeError, OSError):  # a built-in module, or one created at run time
        return None


def _imports(module: ModuleType, source: bytes) -> Iterator[str]:
    """Names that a module's source imports: modules, and some attributes of modules."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a compiled module
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, module.__package__ or "") if node.level else relative
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
