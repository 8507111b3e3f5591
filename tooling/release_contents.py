"""What a built wheel and sdist hold: everything that a user of a package index needs, and nothing else."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Collection, Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

from workspace import CORE, ENTRY_POINTS, ROOT, Package

LICENSE = "Apache-2.0"
DIST_INFO = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
SDIST_EXTRAS = {"PKG-INFO", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore"}
"""Beside src/ and tests/. hatchling adds .gitignore, by which it chooses files when it builds from the sdist."""

INVENTED_HOSTS = re.compile(r"\b(example\.(com|org|net)|localhost|your-?(org|name)|TODO)\b|\.(invalid|test)\b")
_LITTER = re.compile(r"(^|/)(__pycache__|\.[^/]*|[^/]*\.(pyc|pyo|orig|rej|swp|log)|[^/]*~)(/|$)")


def wheel_problems(path: Path, package: Package) -> list[str]:
    """What is missing from a wheel, and what is too much."""
    with ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if not name.endswith("/")]
        info = f"{package.import_name}-{package.version}.dist-info"
        problems = list(_name_problems(names, package, info))
        if problems:
            return [f"{path.name}: {problem}" for problem in problems]
        metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
        problems += metadata_problems(metadata, package)
        if wheel.read(f"{info}/licenses/LICENSE") != (ROOT / "LICENSE").read_bytes():
            problems.append("its LICENSE is not the repository's; copy that into the package")
        entry_points = wheel.read(f"{info}/entry_points.txt").decode()
    problems += entry_point_problems(entry_points, names, package)
    return [f"{path.name}: {problem}" for problem in problems]


def sdist_problems(path: Path, package: Package) -> list[str]:
    """What is missing from an sdist, and what is too much."""
    top = f"{package.import_name}-{package.version}"
    with tarfile.open(path) as archive:
        members = [PurePosixPath(member.name) for member in archive.getmembers() if member.isfile()]
    names = {member.relative_to(top).as_posix() for member in members if member.parts[0] == top}
    problems = [f"holds {member}, which is not under {top}/" for member in members if member.parts[0] != top]
    wanted = {f"src/{package.import_name}/{name}" for name in source_files(package)}
    problems += [f"lacks {name}" for name in sorted((wanted | SDIST_EXTRAS - {".gitignore"}) - names)]
    for name in sorted(names - wanted - SDIST_EXTRAS):
        if not name.startswith("tests/") or _LITTER.search(name):
            problems.append(f"holds {name}; an sdist is sources, tests, and what describes them")
    return [f"{path.name}: {problem}" for problem in problems]


def source_files(package: Package) -> set[str]:
    """The files of the import package, relative to it, without caches."""
    files = (path.relative_to(package.source).as_posix() for path in package.source.rglob("*") if path.is_file())
    return {file for file in files if not _LITTER.search(file)}


def metadata_problems(metadata: Message, package: Package) -> list[str]:
    """What a package index would show wrongly, or not at all."""
    expected = {
        "Name": package.name,
        "Version": str(package.version),
        "License-Expression": LICENSE,
        "License-File": "LICENSE",
        "Requires-Python": package.project.get("requires-python"),
        "Description-Content-Type": "text/markdown",
    }
    problems = [
        f"{field}: found {metadata.get(field)!r}, should be {value!r}"
        for field, value in expected.items()
        if value is None or metadata.get(field) != value
    ]
    for field in ("Summary", "Author", "Keywords"):
        if not metadata.get(field, "").strip():
            problems.append(f"{field}: is empty; fill it in pyproject.toml")
    if len(metadata.get("Summary", "")) > 120:
        problems.append("Summary: longer than 120 characters; an index shows one line")
    problems += _classifier_problems(metadata.get_all("Classifier", []))
    problems += [
        f"Project-URL: found {url!r}; name a host that exists, or leave it out"
        for url in metadata.get_all("Project-URL", [])
        if INVENTED_HOSTS.search(url) or not url.partition(", ")[2].startswith("https://")
    ]
    problems += [
        f"Requires-Dist: found {needed!r}, a place instead of a version; an index refuses that"
        for needed in metadata.get_all("Requires-Dist", [])
        if "@" in needed.partition(";")[0]
    ]
    return problems + readme_problems(str(metadata.get_payload()), package.name)


def readme_problems(text: str, name: str) -> list[str]:
    """What a reader of the package's page on an index could not use."""
    problems = []
    if not text.startswith(f"# {name}\n"):
        problems.append(f"README: does not begin with '# {name}'")
    if re.search(rf"^pip install [^\n#]*\b{re.escape(name)}\b", text, re.MULTILINE) is None:
        problems.append(f"README: no line of a code block says how to install it: pip install {name}")
    problems += [
        f"README: links to {target!r}, which leads nowhere on a package index; name the document in words"
        for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        if not target.startswith(("https://", "#")) or INVENTED_HOSTS.search(target)
    ]
    return problems


def entry_point_problems(text: str, names: Collection[str], package: Package) -> Iterator[str]:
    """Entry points that are missing, or that name modules which the wheel does not hold."""
    section, found = "", []
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("["):
            section = line.strip("[]")
            continue
        module = line.partition("=")[2].strip().partition(":")[0]
        found.append(section)
        file = module.replace(".", "/")
        if f"{file}.py" not in names and f"{file}/__init__.py" not in names:
            yield f"entry point {line!r} of [{section}]: the wheel holds no module {module}"
    needed = "console_scripts" if package.name == CORE else ENTRY_POINTS
    if needed not in found:
        yield f"no entry point of the group {needed!r}"


def _name_problems(names: Collection[str], package: Package, info: str) -> Iterator[str]:
    wanted = {f"{package.import_name}/{name}" for name in source_files(package)} | {
        f"{info}/{name}" for name in DIST_INFO
    }
    if f"{package.import_name}/py.typed" not in wanted:
        yield f"{package.import_name} has no py.typed, so type checkers ignore its annotations; add an empty file"
    for name in sorted(wanted - set(names)):
        yield f"lacks {name}"
    for name in sorted(names):
        if name not in wanted:
            yield f"holds {name}, which is neither the package's source nor metadata"
        elif _LITTER.search(name) or name.startswith(f"{package.import_name}/tests/"):
            yield f"holds {name}; tests and caches stay out"


def _classifier_problems(classifiers: Collection[str]) -> Iterator[str]:
    for wanted in ("Development Status ::", "Intended Audience ::", "Programming Language :: Python :: 3.", "Topic ::"):
        if not any(classifier.startswith(wanted) for classifier in classifiers):
            yield f"Classifier: none begins with '{wanted}'"
    if "Typing :: Typed" not in classifiers:
        yield "Classifier: 'Typing :: Typed' is missing"
    if any(classifier.startswith("License ::") for classifier in classifiers):
        yield "Classifier: found one of 'License ::', which an index refuses beside a licence expression; leave it out"
