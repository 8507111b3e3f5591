"""docs/reference/plugins.md: hooks, specs and interfaces, from ``archon_core.contracts``."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from archon_core import PLUGIN_API
from archon_core.config.reference import attribute_texts
from archon_core.contracts.spec import ConfigSection, Spec
from archon_core.plugins import hookspecs, registry
from archon_core.plugins.kinds import SPEC_TYPES
from generated.tables import code, codes, prose, sentence, table

HEADER = """# Plugins

A plugin adds a model, schedule, engine, algorithm, reward, data set or command to Archon. It is a light module that an
entry point of the group `archon` names. Its functions, marked with `hookimpl`, return *specs*: frozen dataclasses that
name their heavy parts as `"package.module:attribute"`, which Archon imports on first use. `archon new` writes a
complete package. `python tooling/docs.py` generates this page from the hooks, specs and interfaces in `archon_core`.

```toml
[project.entry-points.archon]
my-rewards = "my_rewards.plugin"
```

```python
from archon_core.plugins import RewardSpec, hookimpl

ARCHON_PLUGIN_API = "{api}"


@hookimpl
def archon_rewards():
    return [RewardSpec(name="shorter", target="my_rewards.shorter:reward", summary="short answers score higher")]
```

- `ARCHON_PLUGIN_API` is the version of the plugin interface that the plugin was written for. The plugin works with
  every core of the same major version and the same or a later minor version; core has {api}.
- A plugin module must not import torch, so that `archon plugins` lists all plugins in well under half a second.
- A plugin that fails to import breaks only itself. An error about a missing name repeats the reason, because the plugin
  may provide that name.
- Names and aliases are unique per kind. If two packages provide the same name, the error names both.
- `ARCHON_DISABLE_PLUGINS=a,b`, or `--no-plugin a`, leaves plugins out; `ARCHON_STRICT_PLUGINS=1` turns a broken plugin
  into an error.
- In a notebook, `archon_core.registry().add(spec)` registers a spec for the process.

"""


def render_plugin_kinds(is_ours: Callable[[str], bool]) -> str:
    """The page; ``is_ours`` says which distributions are listed as examples."""
    hooks = {name: hook for name, hook in vars(hookspecs).items() if hasattr(hook, "archon_spec")}
    rows = [
        [
            f"[`{kind.hook}`](#{kind.hook})",
            code(kind.__name__),
            sentence(prose(hooks[kind.hook].__doc__)),
            _provided(kind, is_ours),
        ]
        for kind in SPEC_TYPES
    ]
    parts = [
        HEADER.format(api=".".join(map(str, PLUGIN_API))),
        table(["hook", "returns", "what", "in Archon's packages"], rows),
        "\n## Fields of every spec\n\n",
        _fields(Spec, inherited=()),
        "\n## Options of a plugin\n\n",
        f"{prose(ConfigSection.__doc__)} They become part of the configuration when it names the spec.\n\n",
        _fields(ConfigSection, inherited=()),
    ]
    common = tuple(field.name for field in dataclasses.fields(Spec))
    for kind in SPEC_TYPES:
        parts.append(f"\n## `{kind.hook}`\n\n{_linked(prose(kind.__doc__))}\n")
        if len(dataclasses.fields(kind)) > len(common):
            parts.append(f"\n{_fields(kind, inherited=common)}")
        for protocol in _interfaces(kind):
            parts.append(f"\n### `{protocol.__name__}`\n\n{prose(protocol.__doc__)}\n{_methods(protocol)}")
    return "".join(parts)


def _provided(kind: type[Spec], is_ours: Callable[[str], bool]) -> str:
    specs = [spec for spec in registry().all(kind.kind) if is_ours(spec.origin or "archon-core")]
    return codes(spec.name for spec in specs)


def _fields(schema: type, inherited: tuple[str, ...]) -> str:
    texts = attribute_texts(schema)
    rows = []
    for field in dataclasses.fields(schema):
        if field.name in inherited:
            continue
        kind = str(field.type).replace("None", "null")
        rows.append([code(field.name), code(kind), _default(field), _linked(texts[field.name])])
    return table(["field", "type", "default", ""], rows)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    return code("frozenset()" if field.default == frozenset() else repr(field.default))


def _linked(text: str) -> str:
    return text.replace("``", "`")


def _interfaces(kind: type[Spec]) -> Iterator[type]:
    """The protocols that a spec's documentation names, and the protocols that these return."""
    queue = re.findall(r"`((?:archon_core\.)?[\w.]*[A-Z]\w+)`", inspect.getdoc(kind) or "")
    if kind.kind == "model":
        queue = ["CausalModule", "ModelArguments"]
    topic = importlib.import_module(kind.__module__)
    seen: set[str] = set()
    while queue:
        path, _, name = queue.pop(0).rpartition(".")
        module = importlib.import_module(path) if path.startswith("archon_core.") else topic
        protocol = getattr(module, name, None)
        if name in seen or not getattr(protocol, "_is_protocol", False):
            continue
        seen.add(name)
        yield protocol
        call = vars(protocol).get("__call__")
        returned = inspect.signature(call).return_annotation if call else None
        if isinstance(returned, str):
            queue.append(returned)


def _methods(protocol: type) -> str:
    """Signatures and documentation of what an interface asks for, as ruff formats them."""
    blocks = []
    for name, member in vars(protocol).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not inspect.isfunction(function) or function.__qualname__ != f"{protocol.__name__}.{name}":
            continue  # what typing.Protocol puts there
        marks = "@property\n" if isinstance(member, property) else ""
        marks += "@classmethod\n" if isinstance(member, classmethod) else ""
        blocks.append(f"{marks}{_signature(name, function)}{_body(function)}")
    return "\n```python\n" + "\n\n\n".join(blocks) + "\n```\n" if blocks else ""


def _signature(name: str, function: Any) -> str:
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parameters:
            parameters.append("*")
        hint = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        parameters.append(f"{parameter.name}{hint}{default}")
    returned = inspect.signature(function).return_annotation
    keyword = "async def" if inspect.iscoroutinefunction(function) else "def"
    parameters = [parameter.replace("'", '"') for parameter in parameters]
    line = f"{keyword} {name}({', '.join(parameters)}) -> {returned}:".replace("'", '"')
    if len(line) <= 100:
        return line
    return f"{keyword} {name}(\n{''.join(f'    {parameter},{chr(10)}' for parameter in parameters)}) -> {returned}:"


def _body(function: Any) -> str:
    lines = inspect.cleandoc(function.__doc__ or "").splitlines()
    if not lines:
        return " ..."
    end = '"""' if len(lines) == 1 else '\n    """'
    return "\n".join(["", *(f"    {line}".rstrip() for line in ['"""' + lines[0], *lines[1:]])]) + end
