"""``ChosenFunction``: what the option ``reward`` or ``workflow`` names, and its import in the process that calls it.

It is a plugin's, or defined in a Python file of the user's own folder (``archon_core.plugins.own_functions``).
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from archon_core.contracts.spec import load_target
from archon_core.errors import ArchonError, ConfigError

INSTALLED = frozenset(("site-packages", "dist-packages"))
"""Names of folders with installed packages. A virtual environment often stands inside a project."""


@dataclass(frozen=True)
class ChosenFunction:
    """A function that is not imported yet, as plain data for other processes.

    Attributes:
        name: as in the configuration.
        target: ``module:function``.
        origin: the distribution that provides it; empty for a function of a user's own module.
        folder: of a user's own module, which is imported from there; empty for an installed one.
    """

    option: ClassVar[str]
    """The option that names it."""
    parameters: ClassVar[Sequence[str] | None]
    """Its positional parameters; ``None`` for a function, coroutine or not, of any parameters."""

    name: str
    target: str
    origin: str = ""
    folder: str = ""

    def load(self) -> Any:
        """Import the function.

        The folder of a user's own module goes last on the module search path, so that no file in it hides a module of
        Python or of an installed package.

        Raises:
            ConfigError: the import of a user's own module fails, or the function takes other parameters.
            PluginError: the import of a plugin's function fails.
        """
        function = self._import_own() if self.folder else load_target(self.target, origin=self.origin)
        problem = _problem(function, self.parameters)
        if problem:
            allowed = "a function" if self.parameters is None else f"a function of ({', '.join(self.parameters)})"
            raise ConfigError(f"{self}: found {problem}; allowed is {allowed}; correct {self.target}")
        if self.folder:
            self._check_definer(function)
        return function

    def __str__(self) -> str:
        return f"{self.option} {self.name!r}"

    def _import_own(self) -> Any:
        name, _, attribute = self.target.partition(":")
        if self.folder not in sys.path:
            sys.path.append(self.folder)
        try:
            module = importlib.import_module(name)
        except ArchonError:
            raise
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"{self}: importing {name!r} from {self.folder} raised {type(error).__name__}: {error}; correct the "
                "module, or install what it needs"
            ) from error
        if not is_in(module, self.folder):
            raise ConfigError(
                f"{self}: found the module {name!r} in {getattr(module, '__file__', None) or 'Python'} already; a "
                f"module in {self.folder} needs a name that no installed module has; rename the file"
            )
        if not hasattr(module, attribute):
            raise ConfigError(f"{self}: {name!r} was imported but has no {attribute!r}; correct the name")
        return getattr(module, attribute)

    def _check_definer(self, function: Any) -> None:
        """A configuration may choose functions of the user's own modules only, not what these import."""
        definer = _definer(function)
        if not is_in(sys.modules.get(definer), self.folder):
            raise ConfigError(
                f"{self}: found a function of the module {definer!r}; allowed are functions that modules in "
                f"{self.folder} define; write a function that calls it"
            )


def is_in(module: ModuleType | None, folder: str) -> bool:
    """Whether a module's file lies in ``folder`` or below it, but not in an environment with installed packages."""
    file = getattr(module, "__file__", None)
    return file is not None and lies_in(file, folder)


def lies_in(file: str, folder: str) -> bool:
    """Whether a file lies in ``folder`` or below it, but not in an environment with installed packages."""
    found, outer = Path(file).resolve(), Path(folder).resolve()
    return found.is_relative_to(outer) and not INSTALLED.intersection(found.relative_to(outer).parts)


def _definer(function: Any) -> str:
    """Name of the module whose source defines what a call runs."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    is_function = inspect.isroutine(function) or inspect.isclass(function)
    return getattr(function if is_function else type(function), "__module__", None) or "builtins"


def _problem(function: Any, parameters: Sequence[str] | None) -> str:
    """Why an object cannot be called with ``parameters``; empty if it can."""
    if inspect.isclass(function):
        return f"the class {function.__name__}"
    if not callable(function):
        return f"a value of type {type(function).__name__}"
    if parameters is None:
        return ""
    if inspect.iscoroutinefunction(function):
        return f"the coroutine {function.__name__}"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions of compiled modules have none
        return ""
    try:
        signature.bind(*parameters)
    except TypeError:
        return f"{getattr(function, '__name__', type(function).__name__)}{signature}"
    return ""
