"""Validates the name of a new package and derives its spellings."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution

from archon_core.errors import ConfigError
from archon_core.plugins import registry
from archon_core.plugins.first_party import PACKAGES

_FORM = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_LONGEST = 40

_RESERVED: Mapping[str, str] = {
    "archon": "the name of the command and of Archon itself",
    "src": "the name of a folder in every package",
    "tests": "the name of a folder in every package",
}


@dataclass(frozen=True)
class PackageName:
    """The spellings of a package's name.

    Attributes:
        spec: name in configurations, of the distribution and of its folder: ``demo-llama``.
        module: name of the Python package: ``demo_llama``.
    """

    spec: str
    module: str

    @property
    def title(self) -> str:
        """For headings: ``Demo llama``."""
        return self.module.replace("_", " ").capitalize()


def check_name(name: str, kind: str) -> PackageName:
    """The spellings of ``name``, for a package with a spec of this ``kind`` and the same name.

    Raises:
        ConfigError: the name is malformed, or hides an existing module, distribution or spec.
    """
    if not _FORM.fullmatch(name) or len(name) > _LONGEST:
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")[:_LONGEST]
        example = plain if _FORM.fullmatch(plain) else f"my-{kind}"
        raise ConfigError(
            f"name: found {name!r}; allowed are lower-case letters, digits and single hyphens, starting with a letter, "
            f"at most {_LONGEST} characters; use {example!r}"
        )
    found = PackageName(spec=name.replace("_", "-"), module=name.replace("-", "_"))
    taken = _taken_by(found, kind)
    if taken:
        raise ConfigError(f"name {name!r}: {taken}; choose another name, such as 'my-{found.spec[: _LONGEST - 3]}'")
    return found


def _taken_by(name: PackageName, kind: str) -> str | None:
    if keyword.iskeyword(name.module) or name.module in sys.stdlib_module_names:
        what = "a keyword of Python" if keyword.iskeyword(name.module) else "a module of Python's standard library"
        return f"{name.module!r} is {what}"
    if name.module in _RESERVED:
        return f"{name.module!r} is {_RESERVED[name.module]}"
    if any(name.spec in packages for packages in PACKAGES.values()):
        return f"{name.spec!r} is one of Archon's own packages"
    names = [known for spec in registry().all(kind) for known in (spec.name, *spec.aliases)]
    if name.spec in names or name.module in names:
        return f"a {kind} of that name is installed (see `archon plugins`)"
    try:
        return f"{distribution(name.spec).metadata['Name']!r} is installed here as a package"
    except PackageNotFoundError:
        pass
    return f"the package would hide the installed module {name.module!r}" if _exists(name) else None


def _exists(name: PackageName) -> bool:
    try:
        spec = importlib.util.find_spec(name.module)
    except (ImportError, ValueError):
        return False
    # A plain folder of that name is a namespace package, and hides nothing.
    return spec is not None and spec.origin is not None
