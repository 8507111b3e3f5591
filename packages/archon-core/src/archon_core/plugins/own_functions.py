"""Functions of a user's own modules, named ``module:function`` or ``module.function`` where an option names a plugin.

A configuration may only name Python files in the working directory or in a folder of ``PYTHONPATH``, which the user
chose. Modules of Python and of installed packages are out of reach, because many of their functions would run what a
prompt or a completion contains. Finding a function reads its file and imports nothing.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from archon_core.errors import ConfigError, did_you_mean

_FORM = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*)[:.](?P<function>[^\W\d]\w*)")
_COLON_FORM = re.compile(r"[^:\s]*:[^:\s]*")


@dataclass(frozen=True)
class OwnFunction:
    """A function in a Python file of the user.

    Attributes:
        module: dotted name of the module.
        function: name of the function.
        folder: the folder from which ``module`` is imported.
        file: the module's file.
    """

    module: str
    function: str
    folder: Path
    file: Path

    @property
    def target(self) -> str:
        """As a spec's target."""
        return f"{self.module}:{self.function}"


def names_own_function(text: str) -> bool:
    """Whether ``text`` has the form ``module:function`` or ``module.function``."""
    return bool(_FORM.fullmatch(text) or _COLON_FORM.fullmatch(text))


def find_own_function(
    option: str,
    text: str,
    parameters: Sequence[str] | None,
    *,
    folders: Sequence[Path] | None = None,
    accepted: tuple[type[ast.stmt], ...] = (),
) -> OwnFunction:
    """Find the function that an option names, and check what its file shows without running it.

    Args:
        option: the option, for messages.
        text: its value.
        parameters: names of the positional parameters with which the function is called; ``None`` for a function,
            coroutine or not, of any parameters.
        folders: where to look for the module; ``None`` for ``module_folders()``.
        accepted: kinds of definitions, such as classes, that are as good as such a function.

    Raises:
        ConfigError: no such module or function, or it cannot be called in that way.
    """
    form = _FORM.fullmatch(text)
    if form is None:
        raise ConfigError(
            f"{option}: found {text!r}; allowed: a plugin's name, or module:function, such as my_rewards:score"
        )
    folders = module_folders() if folders is None else folders
    module, function = form["module"], form["function"]
    folder, file = _find_module(option, module, folders)
    found = OwnFunction(module, function, folder, file)
    _check_definition(option, found, parameters, accepted)
    return found


def module_folders(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """The folders of own modules: the working directory, then those of ``PYTHONPATH``."""
    given = environment.get("PYTHONPATH", "").split(os.pathsep)
    return list(dict.fromkeys(Path(folder).resolve() for folder in ("", *filter(None, given))))


def _find_module(option: str, module: str, folders: Sequence[Path]) -> tuple[Path, Path]:
    parts = module.split(".")
    for folder in folders:
        base = folder.joinpath(*parts)
        for file in (base / "__init__.py", base.with_name(f"{parts[-1]}.py")):
            if file.is_file():
                return folder, file
    places = f"{folders[0]} or a folder of PYTHONPATH" if len(folders) == 1 else " or ".join(map(str, folders))
    raise ConfigError(
        f"{option}: found no {'/'.join(parts)}.py in {places}"
        f"{did_you_mean(module, _modules_in(folders[0]))}; start archon in the folder that holds the module, or add "
        "that folder to PYTHONPATH"
    )


def _modules_in(folder: Path) -> list[str]:
    try:
        return sorted(file.stem for file in folder.glob("*.py"))
    except OSError:
        return []


def _check_definition(
    option: str, found: OwnFunction, parameters: Sequence[str] | None, accepted: tuple[type[ast.stmt], ...]
) -> None:
    try:
        tree = ast.parse(found.file.read_bytes(), str(found.file))
    except (OSError, SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ConfigError(f"{option}: cannot read {found.file}{line}: {error}; correct the file") from error
    bindings = list(_bindings(tree.body))
    named = [node for name, node in bindings if name == found.function]
    if not named:
        if any(name in ("*", "__getattr__") for name, _ in bindings):
            return  # only importing the module would show what it has
        functions = [name for name, node in bindings if isinstance(node, (ast.FunctionDef, *accepted))]
        listed = f"it defines {', '.join(functions)}" if functions else "it defines no function"
        raise ConfigError(
            f"{option}: found no {found.function!r} in {found.file}; {listed}; correct the name"
            f"{did_you_mean(found.function, functions)}"
        )
    problem = "" if isinstance(named[-1], accepted) else _problem(named[-1], parameters)
    if problem:
        allowed = "a function" if parameters is None else f"a function of ({', '.join(parameters)})"
        raise ConfigError(f"{option}: found {problem} in {found.file}:{named[-1].lineno}; allowed is {allowed}")


def _bindings(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Names that a module's statements bind, also inside ``if``, ``try``, ``with`` and loops, and their statement."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name.partition(".")[0], node) for alias in node.names)
        else:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                    yield inner.id, node
            for block in ("body", "orelse", "finalbody"):
                yield from _bindings(getattr(node, block, []))
            for handler in getattr(node, "handlers", []):
                yield from _bindings(handler.body)


def _problem(node: ast.stmt, parameters: Sequence[str] | None) -> str:
    """Why a definition cannot be called with ``parameters``; empty if it can, or if only its value would show."""
    if isinstance(node, ast.AsyncFunctionDef) and parameters is not None:
        return f"the coroutine 'async def {node.name}'"
    if isinstance(node, ast.ClassDef):
        return f"the class {node.name!r}"
    if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
        return f"the constant {ast.unparse(node)!r}"
    if not isinstance(node, ast.FunctionDef) or node.decorator_list or parameters is None:
        return ""
    given, arguments = len(parameters), node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    unfilled = [a.arg for a, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if value is None]
    if required <= given and (len(positional) >= given or arguments.vararg) and not unfilled:
        return ""
    return f"{node.name}({ast.unparse(arguments)})"
