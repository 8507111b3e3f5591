"""What a package imports, held against what it declares to need.

A package that relies on what another one happens to need breaks when that one changes. So every distribution that is
imported is declared by the package itself, in its dependencies or an extra, and nothing is declared in vain.
"""

from __future__ import annotations

import ast
import importlib.metadata
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from email.message import Message
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from workspace import Package

IMPORTED_BY_OTHERS: Mapping[str, str] = {
    "tensorboard": "torch.utils.tensorboard imports it",
    "openai": "the agents of users import it (the extra agents)",
}
"""Distributions that are declared though no import names them, and why."""

HOSTS: Mapping[str, str] = {"vllm": "archon-vllm"}
"""Program that loads modules of a package into its own process -> the package. It is not declared: the package also
lives in environments without it."""

NOT_INSTALLED: Mapping[str, str] = {
    "openenv": "openenv-core",
    "verifiers": "verifiers",
    "fla": "fla-core",
    "megatron": "megatron-core",
}
"""Top-level module -> distribution, of extras that the development environment lacks: their dependencies are many."""


def imported_names(files: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Top-level module -> the first file that imports it, without the standard library.

    Imports inside functions count, those for type checkers alone do not.

    Args:
        files: (name, source) of Python modules.
    """
    found: dict[str, str] = {}
    for file, source in files:
        for node in _run_statements(ast.parse(source)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names:
                    found.setdefault(top, file)
    return found


def import_problems(
    imports: Mapping[str, str],
    metadata: Message,
    distributions: Mapping[str, Collection[str]],
) -> list[str]:
    """Imports without a declaration, and declarations without an import.

    Args:
        imports: as ``imported_names`` gives them.
        metadata: of the wheel.
        distributions: top-level module -> the distributions that hold it.
    """
    own = canonicalize_name(metadata["Name"])
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    declared = {canonicalize_name(requirement.name) for requirement in requirements}
    problems, used = [], set()
    for module, file in sorted(imports.items()):
        providers = {canonicalize_name(name) for name in distributions.get(module, ())}
        if own in providers or HOSTS.get(module) == own:
            continue
        if not providers:
            problems.append(f"{file} imports {module}, which nothing that is installed provides")
        elif not providers & declared:
            names = " or ".join(sorted(providers))
            problems.append(f"{file} imports {module}, but {own} does not declare {names}; add it to its dependencies")
        used |= providers
    for name in sorted(declared - used - set(IMPORTED_BY_OTHERS) - {own}):
        problems.append(f"{own} declares {name}, which it never imports; take it out (or see IMPORTED_BY_OTHERS)")
    return problems


def package_imports(source: Path) -> dict[str, str]:
    """``imported_names`` of a folder of modules."""
    modules = sorted(source.rglob("*.py"))
    return imported_names((path.relative_to(source.parent).as_posix(), path.read_text("utf-8")) for path in modules)


def known_distributions(packages: Iterable[Package]) -> dict[str, Collection[str]]:
    """Top-level module -> its distributions: installed ones, ``NOT_INSTALLED``, and the packages of this repository."""
    others = {module: (distribution,) for module, distribution in NOT_INSTALLED.items()}
    ours = {package.import_name: (package.name,) for package in packages}
    return {**others, **importlib.metadata.packages_distributions(), **ours}


def _run_statements(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node = ast.Module(node.orelse, [])
        yield node
        yield from _run_statements(node)
