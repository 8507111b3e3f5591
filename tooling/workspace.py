"""The packages of this repository, as their files describe them: found in packages/, never listed.

Nothing is imported and nothing needs to be installed: versions and plugin APIs are read from the source text, so that
tools say what is in the tree, not what was installed from it some time ago.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
CORE = "archon-core"
ENTRY_POINTS = "archon"
"""The group of entry points by which plugins are found."""


class WorkspaceError(Exception):
    """A package's files do not say what every package's have to say."""


@dataclass(frozen=True)
class Package:
    """One folder of packages/.

    Attributes:
        folder: where it is.
        project: the ``[project]`` table of its pyproject.toml.
        version_file: the module with its ``__version__``, from which hatch reads the version.
        version: in that module.
        plugin_apis: what its entry-point modules declare, by module; core's own interface is ``provided_apis``.
    """

    folder: Path
    project: Mapping[str, Any]
    version_file: Path
    version: Version
    plugin_apis: Mapping[str, str | None]

    @property
    def name(self) -> str:
        """What pip calls it."""
        return str(self.project["name"])

    @property
    def import_name(self) -> str:
        """What Python calls it."""
        return self.version_file.parent.name

    @property
    def source(self) -> Path:
        """The folder of the import package."""
        return self.version_file.parent

    @property
    def changelog(self) -> Path:
        """Its CHANGELOG.md."""
        return self.folder / "CHANGELOG.md"

    @property
    def requirements(self) -> list[Requirement]:
        """What it needs, without its extras."""
        return [Requirement(text) for text in self.project.get("dependencies", ())]

    @property
    def optional_requirements(self) -> dict[str, list[Requirement]]:
        """Extra -> what it needs."""
        extras = self.project.get("optional-dependencies", {})
        return {extra: [Requirement(text) for text in texts] for extra, texts in extras.items()}

    def requirement(self, name: str) -> Requirement | None:
        """What it says about one distribution, if it needs it."""
        wanted = canonicalize_name(name)
        return next((needed for needed in self.requirements if canonicalize_name(needed.name) == wanted), None)


def find_packages(root: Path = ROOT) -> dict[str, Package]:
    """Every package by name, sorted, core first.

    Raises:
        WorkspaceError: a package's files cannot be read so.
    """
    packages = [read_package(path.parent) for path in (root / "packages").glob("*/pyproject.toml")]
    packages.sort(key=lambda package: (package.name != CORE, package.name))
    return {package.name: package for package in packages}


def read_package(folder: Path) -> Package:
    """The package in a folder.

    Raises:
        WorkspaceError: its pyproject.toml names no version file, or that has no ``__version__``.
    """
    pyproject = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    path = pyproject.get("tool", {}).get("hatch", {}).get("version", {}).get("path")
    if path is None:
        raise WorkspaceError(
            f"{folder.name}/pyproject.toml has no version file; name it as the other packages do: "
            '[tool.hatch.version] path = "src/<import name>/__init__.py"'
        )
    version_file = folder / path
    version = string_constant(version_file, "__version__")
    if version is None:
        raise WorkspaceError(f'{folder.name}/{path} has no version; write __version__ = "X.Y.Z" into it')
    project = pyproject["project"]
    return Package(folder, project, version_file, Version(version), _plugin_apis(folder, project))


def string_constant(module: Path, name: str) -> str | None:
    """The text that a module assigns to a name last, or ``None``."""
    found = None
    for statement in ast.parse(module.read_text(encoding="utf-8")).body:
        if (
            isinstance(statement, ast.Assign)
            and [target.id for target in statement.targets if isinstance(target, ast.Name)] == [name]
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
        ):
            found = statement.value.value
    return found


def _plugin_apis(folder: Path, project: Mapping[str, Any]) -> dict[str, str | None]:
    modules = [value.partition(":")[0] for value in project.get("entry-points", {}).get(ENTRY_POINTS, {}).values()]
    files = {module: folder / "src" / Path(*module.split(".")).with_suffix(".py") for module in modules}
    return {
        module: string_constant(file, "ARCHON_PLUGIN_API") if file.is_file() else None for module, file in files.items()
    }
