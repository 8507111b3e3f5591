"""References to functions that another process can load, including functions in files that cannot be imported by name.

pytest's ``--import-mode=importlib`` gives test files module names that only its own process knows. So a reference also
stores the file, and the loading process uses an ordinary import if that gives the same file, else the file itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

from archon_core.errors import ConfigError


@dataclass(frozen=True)
class FunctionReference:
    """A function at the top level of a module, or an attribute of a class there.

    Attributes:
        module: the module's name in the process that made the reference.
        qualified_name: ``__qualname__`` of the function.
        file: path of the module's source; empty for importable modules.
    """

    module: str
    qualified_name: str
    file: str = ""

    @classmethod
    def of(cls, function: Callable[..., Any]) -> FunctionReference:
        """The reference to ``function``.

        Raises:
            ConfigError: another process cannot load it: a lambda, a local function, a bound method.
        """
        module_name = getattr(function, "__module__", None)
        qualified_name = getattr(function, "__qualname__", None)
        module = sys.modules.get(module_name or "")
        if module is None or qualified_name is None or _attribute(module, qualified_name) is not function:
            raise ConfigError(
                f"function of a world: found {function!r}, which its ranks cannot load; allowed are functions at the "
                "top level of a module; define it with def at the top level, and pass values as args"
            )
        return cls(module.__name__, qualified_name, getattr(module, "__file__", None) or "")

    def __str__(self) -> str:
        return f"{self.module}.{self.qualified_name}"

    def load(self) -> Callable[..., Any]:
        """Import the module, or run its file under its name, and return the function.

        Raises:
            ConfigError: the module has no such attribute.
            ImportError, or an exception of the file: the module cannot be loaded.
        """
        function = _attribute(self._load_module(), self.qualified_name)
        if function is None:
            raise ConfigError(f"function of a world: {self.file or self.module} has no {self.qualified_name!r}")
        return function

    def _load_module(self) -> ModuleType:
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            # A missing module other than this one is the file's own error; running the file would only repeat it.
            if not self.file or error.name is None or not f"{self.module}.".startswith(f"{error.name}."):
                raise
        else:
            if not self.file or _same_file(module, self.file):
                return module
        return self._run_file()

    def _run_file(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location(self.module, self.file)
        assert spec is not None, f"{self.file} is no Python file"
        assert spec.loader is not None, f"{self.file} has no loader"
        module = importlib.util.module_from_spec(spec)
        # Registered before it runs: pickled values refer to its classes by module name, and to parent packages.
        _provide_parents(self.module)
        sys.modules[self.module] = module
        spec.loader.exec_module(module)
        return module


def _provide_parents(name: str) -> None:
    """Create an empty module for every parent package of a dotted name that cannot be imported."""
    segments = name.split(".")
    for end in range(1, len(segments)):
        parent = ".".join(segments[:end])
        try:
            importlib.import_module(parent)
        except ImportError:
            sys.modules[parent] = ModuleType(parent)


def _attribute(module: ModuleType, qualified_name: str) -> Any:
    """The object of that name; ``None`` if there is none, as for ``f.<locals>.g``."""
    return reduce(lambda owner, name: getattr(owner, name, None), qualified_name.split("."), module)


def _same_file(module: ModuleType, file: str) -> bool:
    found = getattr(module, "__file__", None)
    return found is not None and Path(found).resolve() == Path(file).resolve()
