"""The walls between packages: layers, no circles, and plugins that stand on public modules alone."""

from __future__ import annotations

import graphlib
import re
from pathlib import Path

import grimp
import pytest

from workspace import find_packages

ROOT = Path(__file__).parents[1]
IMPORT_NAMES = [package.import_name for package in find_packages().values()]

LAYERS = {"archon_core": 0, "archon_engine": 1, "archon_plan": 3, "archon_rl": 3}
"""Package -> its layer; every other one is in layer 2."""

INSIDERS = {"archon_engine", "archon_train", "archon_testing", "archon_scaffold"}
"""Packages that may import what is not public: they run, verify or take apart engines."""


def package_of(module: str) -> str:
    return module.partition(".")[0]


def edges(*, for_type_checkers: bool) -> list[tuple[str, str]]:
    """All imports between modules of this repository, inside functions too."""
    # grimp's cache does not tell graphs with and without imports for type checkers apart.
    graph = grimp.build_graph(*IMPORT_NAMES, exclude_type_checking_imports=not for_type_checkers, cache_dir=None)
    return [(module, name) for module in graph.modules for name in graph.find_modules_directly_imported_by(module)]


@pytest.fixture(scope="module")
def all_edges() -> list[tuple[str, str]]:
    return edges(for_type_checkers=True)


def public_modules() -> dict[str, list[str]]:
    """Package -> the modules that CONTRIBUTING.md calls public, of which ``""`` is the package itself."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("**What is public:**")[2]
    rows = re.findall(r"^\| `(archon_\w+)` \| (.+) \|$", text, re.MULTILINE)
    return {
        package: [*([""] if "itself" in modules else []), *re.findall(r"`([\w.]+)`", modules)]
        for package, modules in rows
    }


def is_public(module: str, public: dict[str, list[str]]) -> bool:
    package, _, name = module.partition(".")
    return any(name == listed or (listed and name.startswith(f"{listed}.")) for listed in public.get(package, []))


def test_imports_lead_to_lower_layers_even_those_for_type_checkers(all_edges: list[tuple[str, str]]) -> None:
    wrong = [
        f"{module} imports {name}"
        for module, name in all_edges
        if (importer := package_of(module)) != (imported := package_of(name))
        and LAYERS.get(imported, 2) >= LAYERS.get(importer, 2)
    ]
    assert wrong == []


def test_modules_do_not_import_one_another_in_circles() -> None:
    # The packages themselves give short names to what is in them, and modules read their versions.
    imports: dict[str, set[str]] = {}
    for module, name in edges(for_type_checkers=False):
        if name not in IMPORT_NAMES:
            imports.setdefault(module, set()).add(name)
    graphlib.TopologicalSorter(imports).prepare()


def test_plugins_import_public_modules_of_other_packages_only(all_edges: list[tuple[str, str]]) -> None:
    public = public_modules()
    plugins = set(IMPORT_NAMES) - INSIDERS - {"archon_core"}
    wrong = [
        f"{module} imports {name}"
        for module, name in all_edges
        if package_of(module) in plugins and package_of(name) != package_of(module) and not is_public(name, public)
    ]
    assert wrong == [], "take it into the table of public modules of CONTRIBUTING.md, or do without it"


def test_every_public_module_is_there() -> None:
    modules = set(grimp.build_graph(*IMPORT_NAMES, cache_dir=None).modules)
    public = public_modules()
    assert {"archon_core", "archon_engine"} <= set(public)
    for package, names in public.items():
        assert {f"{package}.{name}".rstrip(".") for name in names} <= modules
