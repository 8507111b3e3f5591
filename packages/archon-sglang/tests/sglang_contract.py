"""SGLang's HTTP contract as data, read from its source without importing it.

``python sglang_contract.py FOLDER`` prints the table of an unpacked wheel; ``data/sglang_contract.json`` is that of one
version. SGLang ignores unknown fields silently, so ``problems_of`` finds these as well as wrong types.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import zipfile
from pathlib import Path

TABLE = Path(__file__).parent / "data" / "sglang_contract.json"

ROUTES_FILE = "sglang/srt/entrypoints/http_server.py"
CLASS_FILES = {
    "sglang/srt/managers/io_struct.py": None,
    "sglang/srt/sampling/sampling_params.py": {"SamplingParams"},
}
ARGUMENT_FILES = "sglang/srt/arg_groups/fields/"


def read_contract(wheel):
    """The table of a wheel, or of the folder of an unpacked one."""
    read, names = _reader(Path(wheel))
    (metadata,) = [name for name in names if re.fullmatch(r"sglang-[^/]*\.dist-info/METADATA", name)]
    version = re.search(r"^Version: (.+)$", read(metadata), re.MULTILINE).group(1)
    routes = _routes(ast.parse(read(ROUTES_FILE)))
    classes = {}
    for file, wanted in CLASS_FILES.items():
        classes |= _classes(ast.parse(read(file)), wanted)
    bodies = {route["body"] for route in routes.values()} - {""}
    kept = {name for name in bodies if name in classes} | {"SamplingParams"}
    return {
        "version": version,
        "routes": dict(sorted(routes.items())),
        "classes": {name: classes[name] for name in sorted(kept)},
        "flags": sorted(_flags(read, names)),
    }


def problems_of(table, method, path, body):
    """Why SGLang would not understand a request; empty if it would."""
    route = table["routes"].get(path)
    if route is None or method not in route["methods"]:
        return [f"{method} {path}: no such route"]
    if not route["body"]:
        return [] if body is None else [f"{path}: takes no body"]
    found = _problems_of_fields(table["classes"][route["body"]], body, path)
    if route["body"] == "GenerateReqInput":
        found += _problems_of_fields(table["classes"]["SamplingParams"], body.get("sampling_params", {}), "sampling")
    return found


def _problems_of_fields(fields, body, where):
    found = [f"{where}: unknown field {name!r}" for name in body if name not in fields]
    found += [f"{where}: {name!r} is required" for name, f in fields.items() if "default" not in f and name not in body]
    found += [
        f"{where}: {name!r} is {value!r}, not {fields[name]['type']}"
        for name, value in body.items()
        if name in fields and not _fits(ast.parse(fields[name]["type"], mode="eval").body, value)
    ]
    return found


def _fits(hint, value):
    """Whether a JSON value fits an annotation; annotations with other names fit everything."""
    if isinstance(hint, ast.Constant):
        return value is hint.value
    if isinstance(hint, ast.Name):
        kinds = {"str": str, "int": int, "float": (int, float), "bool": bool, "dict": dict, "list": list}
        kind = kinds.get(hint.id)
        return kind is None or (isinstance(value, kind) and (hint.id == "bool" or not isinstance(value, bool)))
    if not isinstance(hint, ast.Subscript):
        return True
    name = hint.value.id
    items = hint.slice.elts if isinstance(hint.slice, ast.Tuple) else [hint.slice]
    if name == "Optional":
        return value is None or _fits(items[0], value)
    if name == "Union":
        return any(_fits(item, value) for item in items)
    if name == "Annotated":
        return _fits(items[0], value)
    if name == "Literal":
        return value in [item.value for item in items]
    if name in ("List", "Set"):
        return isinstance(value, list) and all(_fits(items[0], item) for item in value)
    return name != "Dict" or isinstance(value, dict)


def _reader(path):
    if path.is_file():
        archive = zipfile.ZipFile(path)
        return lambda name: archive.read(name).decode(), archive.namelist()
    names = [str(file.relative_to(path)) for file in path.rglob("*") if file.suffix in (".py", "") and file.is_file()]
    return lambda name: (path / name).read_text(encoding="utf-8"), names


def _routes(module):
    """Path -> methods and the class of the body, of all decorated handlers."""
    routes = {}
    for function in ast.walk(module):
        if not isinstance(function, ast.AsyncFunctionDef | ast.FunctionDef):
            continue
        for decorator in function.decorator_list:
            if not (isinstance(decorator, ast.Call) and ast.unparse(decorator.func).startswith("app.")):
                continue
            verb = decorator.func.attr
            if verb not in ("get", "post", "api_route") or not isinstance(decorator.args[0], ast.Constant):
                continue
            listed = [ast.literal_eval(k.value) for k in decorator.keywords if k.arg == "methods"]
            methods = listed[0] if listed else [verb.upper()]
            hints = [ast.unparse(a.annotation) for a in function.args.args if a.annotation is not None]
            bodies = [match for hint in hints if (match := re.search(r"\b(\w+(?:ReqInput|Req))\b", hint))]
            entry = routes.setdefault(decorator.args[0].value, {"methods": [], "body": ""})
            entry["methods"] = sorted({*entry["methods"], *methods})
            entry["body"] = bodies[0].group(1) if bodies else entry["body"]
    return routes


def _classes(module, wanted):
    """Class -> field -> type and default, the fields of base classes in the module included."""
    nodes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}

    def fields(name):
        node, found = nodes[name], {}
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id in nodes:
                found |= fields(base.id)
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation):
                default = {} if item.value is None else {"default": ast.unparse(item.value)}
                found[item.target.id] = {"type": ast.unparse(item.annotation), **default}
        return found

    return {name: fields(name) for name in nodes if wanted is None or name in wanted}


def _flags(read, names):
    """The options of the command line: declared fields, and fields with a separate parser."""
    for name in names:
        if not (name.startswith(ARGUMENT_FILES) and name.endswith(".py")):
            continue
        for node in ast.walk(ast.parse(read(name))):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                if "no_cli=True" not in ast.unparse(node.annotation):
                    yield "--" + node.target.id.replace("_", "-")
                yield from re.findall(r"'(--[\w-]+)'", ast.unparse(node.annotation))
    yield from re.findall(r'"(--[a-z][\w-]+)"', read("sglang/srt/server_args.py"))


if __name__ == "__main__":
    print(json.dumps(read_contract(sys.argv[1]), indent=1, sort_keys=True))
