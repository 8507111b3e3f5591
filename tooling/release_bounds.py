"""What packages may say about the versions that they need, so that pip can put any of them together.

First-party bounds have one form, ``archon-core>=X.Y,<1``: the lowest release with what is used, and everything up to
the first that may break. A third-party bound is the same text in every package that states it, and the version that
continuous integration runs with fits it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from workspace import CORE, Package

ApiSince = Mapping[tuple[int, int], str]
"""Plugin API -> the first release of core that has it."""


def bound_problems(package: Package, packages: Mapping[str, Package], api_since: ApiSince) -> list[str]:
    """What is wrong with a package's bounds on packages of ours, and what mends it."""
    return [
        f"{package.name}: {problem}"
        for requirement in _all_requirements(package)
        if canonicalize_name(requirement.name) in packages
        for problem in _problems_of(requirement, package, packages, api_since)
    ] + [f"{package.name}: {problem}" for problem in _api_problems(package, api_since)]


def unreleased_needs(package: Package, released: Mapping[str, Sequence[Version]]) -> list[Requirement]:
    """What a package needs of ours and of which no release fits: these are to be released first.

    Args:
        package: about to be released.
        released: package -> its releases.
    """
    return [
        requirement
        for requirement in package.requirements
        if canonicalize_name(requirement.name) in released
        and not any(
            requirement.specifier.contains(version, prereleases=True)
            for version in released[canonicalize_name(requirement.name)]
        )
    ]


def third_party_problems(packages: Mapping[str, Package], tested: Mapping[str, Version]) -> list[str]:
    """Bounds that differ between packages, lack a lowest version, or leave out the version that is tested.

    Args:
        packages: all of them.
        tested: distribution -> version, of constraints/tested.txt.
    """
    bounds: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for package in packages.values():
        for requirement in _all_requirements(package):
            name = canonicalize_name(requirement.name)
            if name not in packages:
                bounds[name][str(requirement.specifier)].append(package.name)
    problems = []
    for name, by_bound in sorted(bounds.items()):
        if len(by_bound) > 1:
            found = "; ".join(f"{name}{bound} in {', '.join(users)}" for bound, users in by_bound.items())
            problems.append(f"{name}: found different bounds ({found}); one environment holds all packages: write one")
        for bound, users in by_bound.items():
            specifier = Requirement(f"{name}{bound}").specifier
            if not any(part.operator == ">=" for part in specifier):
                problems.append(f"{users[0]}: found {name}{bound}; name the lowest version that works: {name}>=X.Y")
            if name in tested and not specifier.contains(tested[name], prereleases=True):
                problems.append(f"{users[0]}: found {name}{bound}, but CI tests {tested[name]}; change one of them")
    return problems


def shown(requirement: Requirement) -> str:
    """A requirement as people write it, the lowest version first: ``archon-core>=0.1,<1``."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{','.join(sorted(map(str, requirement.specifier), reverse=True))}"


def read_constraints(text: str) -> dict[str, Version]:
    """Distribution -> version of a file of ``name==version`` lines."""
    pins = re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in pins}


def _all_requirements(package: Package) -> Iterator[Requirement]:
    yield from package.requirements
    for requirements in package.optional_requirements.values():
        yield from requirements


def _problems_of(
    requirement: Requirement, package: Package, packages: Mapping[str, Package], api_since: ApiSince
) -> Iterator[str]:
    needed = packages[canonicalize_name(requirement.name)]
    if needed is package:  # an extra that gathers others: archon-rl[all]
        return
    match = re.fullmatch(r"<1,>=(?P<lowest>\d+\.\d+(\.\d+)?)", ",".join(sorted(str(requirement.specifier).split(","))))
    if match is None:
        yield f"found {shown(requirement)}; first-party bounds are {requirement.name}>=X.Y,<1"
    elif not requirement.specifier.contains(needed.version, prereleases=True):
        yield f"found {shown(requirement)}, but {needed.name} here is {needed.version}; raise one or lower the other"
    elif needed.name == CORE:
        for module, declared in package.plugin_apis.items():
            since = api_since.get(_api(declared))
            if since is not None and Version(match["lowest"]) < Version(since):
                yield (
                    f"{module} declares plugin API {declared}, which {CORE} has since {since}, but "
                    f"{shown(requirement)} allows older ones; write {CORE}>={since},<1"
                )


def _api_problems(package: Package, api_since: ApiSince) -> Iterator[str]:
    known = ", ".join(f'"{major}.{minor}"' for major, minor in sorted(api_since))
    for module, declared in package.plugin_apis.items():
        if _api(declared) not in api_since:
            found = f"ARCHON_PLUGIN_API = {declared!r}" if declared else "no ARCHON_PLUGIN_API"
            yield f"found {found} in {module}; {CORE} has {known}: declare one of them"


def _api(declared: str | None) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d+)\.(\d+)", declared or "")
    return (int(match[1]), int(match[2])) if match else None
