"""Generates docs/reference/compatibility.md: compatible versions of the packages, from their pyproject.toml files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from packaging.requirements import Requirement
from packaging.version import Version

from release_bounds import ApiSince, shown
from workspace import CORE, Package

PATH = "docs/reference/compatibility.md"

HEAD = """# Compatibility

This page lists which versions work together; pip enforces it. `python tooling/docs.py` generates the page from the
packages' metadata. [CONTRIBUTING.md](../../CONTRIBUTING.md#versions) explains how version numbers are chosen.

## Packages of this repository

"""

APIS = """
A package works with every `archon-core` that its bound allows. Write an extra in brackets after the name:
`pip install "{example}"`.

## Plugin API

The interface between core and plugins has its own version. A plugin declares the version that it was written for, and
works with any core of the same major version and the same or a later minor version. `archon plugins` lists any other
plugin as `incompatible`, with the command that fixes it.

"""

TESTED = """
## Tested with

Continuous integration runs these versions (`constraints/tested.txt`); `archon doctor` lists differences of an
installation. Other versions within the bounds should work.

"""


def render_compatibility(packages: Mapping[str, Package], api_since: ApiSince, tested: Mapping[str, Version]) -> str:
    """The page.

    Args:
        packages: all of ours.
        api_since: plugin API -> first release of core that has it.
        tested: third-party distribution -> version that continuous integration runs with.
    """
    newest = max(api_since)
    rows = []
    for package in packages.values():
        is_core = package.name == CORE
        apis = sorted({api or "?" for api in package.plugin_apis.values()})
        core, torch = package.requirement(CORE), package.requirement("torch")
        rows.append(
            (
                f"`{package.name}`",
                str(package.version),
                f"provides {_dotted(newest)}" if is_core else ", ".join(apis),
                "" if core is None else _code(core),
                "" if torch is None else str(torch.specifier),
                package.project.get("requires-python", ""),
                ", ".join(_code(need) for need in package.requirements if need.name not in (CORE, "torch")),
                "; ".join(_extra(name, needs) for name, needs in package.optional_requirements.items()),
            )
        )
    columns = ("package", "version", "plugin API", f"needs `{CORE}`", "torch", "Python", "also needs", "extras")
    declared = {api for package in packages.values() for api in package.plugin_apis.values()}
    needed = {need.name for package in packages.values() for need in _everything(package)}
    apis = [
        (_dotted(api), since, "yes" if _dotted(api) in declared else "no") for api, since in sorted(api_since.items())
    ]
    with_extras = next(
        (f"{name}[{extra}]" for name, package in packages.items() for extra in package.optional_requirements), CORE
    )
    return "".join(
        (
            HEAD,
            _table(columns, rows),
            APIS.format(example=with_extras),
            _table(("plugin API", f"in `{CORE}` since", "declared by packages of this repository"), apis),
            TESTED,
            _table(
                ("distribution", "version"),
                [(f"`{name}`", str(version)) for name, version in sorted(tested.items()) if name in needed],
            ),
        )
    )


def _everything(package: Package) -> list[Requirement]:
    return [*package.requirements, *(need for needs in package.optional_requirements.values() for need in needs)]


def _extra(name: str, needs: Iterable[Requirement]) -> str:
    return f"`[{name}]`: {', '.join(map(_code, needs))}"


def _code(need: Requirement) -> str:
    return f"`{shown(need)}`"


def _dotted(api: tuple[int, int]) -> str:
    return f"{api[0]}.{api[1]}"


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
