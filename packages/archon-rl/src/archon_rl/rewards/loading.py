"""Imports a reward function, in the process that calls it."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from typing import Any

from archon_core.contracts.data import REWARD_PARAMETERS
from archon_core.contracts.spec import load_target
from archon_core.errors import ArchonError, ConfigError
from archon_rl.rewards.checking import NamedReward
from archon_rl.rewards.source import RewardSource
from archon_rl.rewards.source_fingerprint import is_in

ALLOWED = f"a function of ({', '.join(REWARD_PARAMETERS)})"


def load_reward(source: RewardSource) -> NamedReward:
    """Import the function.

    The folder of a user's own module goes last on the module search path, so that no file in it hides a module of
    Python or of an installed package.

    Raises:
        ConfigError: the import of a user's own module fails, or the function cannot be called as a reward.
        PluginError: the import of a plugin's reward fails.
    """
    function = _import_own(source) if source.folder else load_target(source.target, origin=source.origin)
    problem = _problem(function)
    if problem:
        raise ConfigError(f"reward {source.name!r}: found {problem}; allowed is {ALLOWED}; correct {source.target}")
    if source.folder:
        _check_definer(source, function)
    return NamedReward(source.name, function)


def _import_own(source: RewardSource) -> Any:
    name, _, attribute = source.target.partition(":")
    if source.folder not in sys.path:
        sys.path.append(source.folder)
    try:
        module = importlib.import_module(name)
    except ArchonError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"reward {source.name!r}: importing {name!r} from {source.folder} raised {type(error).__name__}: {error}; "
            "correct the module, or install what it needs"
        ) from error
    if not is_in(module, source.folder):
        raise ConfigError(
            f"reward {source.name!r}: found the module {name!r} in {getattr(module, '__file__', None) or 'Python'} "
            f"already; a module in {source.folder} needs a name that no installed module has; rename the file"
        )
    if not hasattr(module, attribute):
        raise ConfigError(f"reward {source.name!r}: {name!r} was imported but has no {attribute!r}; correct the name")
    return getattr(module, attribute)


def _check_definer(source: RewardSource, function: Any) -> None:
    """A configuration may choose functions of the user's own modules only, not what these import."""
    definer = _definer(function)
    if not is_in(sys.modules.get(definer), source.folder):
        raise ConfigError(
            f"reward {source.name!r}: found a function of the module {definer!r}; allowed are functions that modules "
            f"in {source.folder} define; write a function that calls it"
        )


def _definer(function: Any) -> str:
    """Name of the module whose source defines what a call runs."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    is_function = inspect.isroutine(function) or inspect.isclass(function)
    return getattr(function if is_function else type(function), "__module__", None) or "builtins"


def _problem(function: Any) -> str:
    """Why an object is no reward function; empty if it is one."""
    if inspect.isclass(function):
        return f"the class {function.__name__}"
    if not callable(function):
        return f"a value of type {type(function).__name__}"
    if inspect.iscoroutinefunction(function):
        return f"the coroutine {function.__name__}"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions of compiled modules have none
        return ""
    try:
        signature.bind(*REWARD_PARAMETERS)
    except TypeError:
        return f"{getattr(function, '__name__', type(function).__name__)}{signature}"
    return ""
