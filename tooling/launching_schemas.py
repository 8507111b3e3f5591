"""Checks the files in ``examples/launching`` against published schemas: ``launching_schemas.py FOLDER [--store]``.

FOLDER has the packages that publish them: ``pip install --no-deps --target FOLDER kubernetes-validate
kubeflow-trainer-api skypilot``. Of each schema, the part that the files use is stored in
``tests/data/launching_schemas.json``, without texts, and with every other field forbidden; so tests need no package.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import yaml

ROOT = Path(__file__).parents[1]
FILES = ROOT / "examples" / "launching"
STORED = ROOT / "tests" / "data" / "launching_schemas.json"

KEPT = ("type", "enum", "const", "pattern", "required", "minimum", "maximum", "items", "additionalProperties")
"""What is stored of a schema, beside its properties and alternatives."""
CHOICES = ("anyOf", "oneOf")

Schema = dict[str, Any]


def documents() -> dict[str, Any]:
    """Kind -> document of a file."""
    found = {}
    for file in sorted(FILES.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text(encoding="utf-8")):
            found[document.get("kind", file.stem)] = document
    return found


def problems(schema: Schema, value: Any, place: str = "") -> Iterator[str]:
    """What a stored schema forbids in a value, each with its place."""
    for word in CHOICES:
        if word in schema and not any(not list(problems(one, value, place)) for one in schema[word]):
            yield f"{place or '.'}: {value!r} is none of the alternatives"
    kinds = schema.get("type", [])
    if kinds and not any(_is_of(kind, value) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        yield f"{place or '.'}: found {value!r}; allowed is {kinds}"
        return
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        yield f"{place or '.'}: found {value!r}; allowed is {schema.get('enum', schema.get('const'))}"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{place or '.'}: found {value!r}; allowed is {schema['pattern']}"
    if isinstance(value, int) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{place or '.'}: found {value}"
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        yield from (f"{place}.{name}: missing" for name in schema.get("required", []) if name not in value)
        for name, entry in value.items():
            if name not in properties and others is False:
                yield f"{place}.{name}: unknown"
            else:
                yield from problems(properties.get(name, others or {}), entry, f"{place}.{name}")
    if isinstance(value, list):
        for index, entry in enumerate(value):
            yield from problems(schema.get("items", {}), entry, f"{place}[{index}]")


def _is_of(kind: str, value: Any) -> bool:
    kinds: Mapping[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "integer": int,
        "number": (int, float),
        "null": type(None),
    }
    return isinstance(value, kinds[kind]) and (kind == "boolean" or not isinstance(value, bool))


class Published:
    """A published schema, with the documents that it refers to.

    Args:
        whole: the schema.
        definitions: name -> schema, for references that end with the name.
    """

    def __init__(self, whole: Schema, definitions: Mapping[str, Schema]) -> None:
        self._whole, self._definitions = whole, definitions

    def used(self, value: Any) -> Schema:
        """The part of the schema that a value uses.

        Raises:
            ValueError: the value has a field that the schema does not have.
        """
        return self._used(self._whole, value, "")

    def _used(self, schema: Schema, value: Any, place: str) -> Schema:
        while "$ref" in schema:
            schema = self._definitions[schema["$ref"].rpartition("/")[2]]
        kept = {word: schema[word] for word in KEPT if word in schema and word != "items"}
        for word in CHOICES:
            if word in schema:
                kept[word] = [self._used(one, value, place) for one in schema[word] if self._can_be(one, value)]
                if not kept[word]:
                    raise ValueError(f"{place}: {value!r} is none of the alternatives of {word}")
        if isinstance(value, dict) and ("properties" in schema or "patternProperties" in schema):
            fields = {name: _field(schema, name) for name in value}
            unknown = [name for name, field in fields.items() if field is None]
            if unknown and not isinstance(schema.get("additionalProperties"), dict):
                raise ValueError(f"{place}: {', '.join(unknown)} unknown")
            kept["properties"] = {
                name: self._used(field, value[name], f"{place}.{name}")
                for name, field in fields.items()
                if field is not None
            }
            kept.setdefault("additionalProperties", False)
        if isinstance(kept.get("additionalProperties"), dict):
            kept["additionalProperties"] = self._merged(kept["additionalProperties"], value, place)
        if isinstance(value, list) and "items" in schema:
            kept["items"] = self._merged(schema["items"], dict(enumerate(value)), place)
        return kept

    def _merged(self, schema: Schema, values: Mapping[Any, Any], place: str) -> Schema:
        """What all entries of a list, or of a mapping, use together."""
        merged: Schema = {}
        for name, entry in values.items():
            merged = _join(merged, self._used(schema, entry, f"{place}[{name}]"))
        return merged

    def _can_be(self, schema: Schema, value: Any) -> bool:
        while "$ref" in schema:
            schema = self._definitions[schema["$ref"].rpartition("/")[2]]
        kinds = schema.get("type", [])
        return not kinds or any(_is_of(kind, value) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _field(schema: Schema, name: str) -> Schema | None:
    """The schema of a field; ``None`` if there is none of this name."""
    patterns = schema.get("patternProperties", {})
    fitting = [field for pattern, field in patterns.items() if re.search(pattern, name)]
    found: Schema | None = schema.get("properties", {}).get(name) or next(iter(fitting), None)
    return found


def _join(one: Schema, other: Schema) -> Schema:
    joined = {**one, **other}
    if "properties" in one and "properties" in other:
        names = dict.fromkeys([*one["properties"], *other["properties"]])
        joined["properties"] = {
            name: _join(one["properties"].get(name, {}), other["properties"].get(name, {})) for name in names
        }
    for word in CHOICES:
        if word in one and word in other:
            joined[word] = [_join(*pair) for pair in zip(one[word], other[word], strict=True)]
    if "items" in one and "items" in other:
        joined["items"] = _join(one["items"], other["items"])
    return joined


def read_published(folder: Path) -> dict[str, Published]:
    """Kind of document -> its schema, from the packages in a folder."""
    definitions = _kubernetes_definitions(folder)
    kubernetes = {
        "Service": Published(definitions["io.k8s.api.core.v1.Service"], definitions),
        "StatefulSet": Published(definitions["io.k8s.api.apps.v1.StatefulSet"], definitions),
    }
    return {**kubernetes, **_jobset(folder, definitions), **_skypilot(folder)}


def _kubernetes_definitions(folder: Path) -> dict[str, Schema]:
    versions = (folder / "kubernetes_validate" / "kubernetes-json-schema").glob("v*-local-strict")
    newest = max(versions, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])
    found: dict[str, Schema] = json.loads((newest / "_definitions.json").read_text(encoding="utf-8"))["$defs"]
    return found


def _jobset(folder: Path, kubernetes: Mapping[str, Schema]) -> dict[str, Published]:
    sys.path.insert(0, str(folder))
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

    schema = JobsetV1alpha2JobSet.model_json_schema(by_alias=True)
    # Its classes are exact for the fields of JobSet, and approximate those of Kubernetes.
    exact = {
        "IoK8sApiBatchV1JobTemplateSpec": kubernetes["io.k8s.api.batch.v1.JobTemplateSpec"],
        "IoK8sApimachineryPkgApisMetaV1ObjectMeta": kubernetes["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"],
    }
    return {"JobSet": Published(schema, {**kubernetes, **schema["$defs"], **exact})}


def _skypilot(folder: Path) -> dict[str, Published]:
    # The module needs the whole of sky for lists of clouds and patterns, which no field of ours depends on.
    for name in ("sky", "sky.server", "sky.skylet", "sky.utils"):
        sys.modules[name] = MagicMock()
    constants = sys.modules["sky.skylet"].constants
    constants.ALL_CLOUDS, constants.ENV_VAR_IS_SKYPILOT_SERVER = ("kubernetes",), "IS_SKYPILOT_SERVER"
    spec = importlib.util.spec_from_file_location("sky_schemas", folder / "sky" / "utils" / "schemas.py")
    assert spec is not None
    assert spec.loader is not None
    schemas = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schemas)
    task = schemas.get_task_schema()
    task["properties"]["resources"] = schemas.get_resources_schema()
    return {"skypilot": Published(task, {})}


def record(folder: Path) -> dict[str, Schema]:
    """The used part of every schema. Raises ValueError if a file has what its schema does not have."""
    published = read_published(folder)
    return {kind: published[kind].used(document) for kind, document in documents().items()}


def main() -> None:
    """Check the files, and print or store the used parts."""
    found = record(Path(sys.argv[1]))
    for kind, document in documents().items():
        for problem in problems(found[kind], document):
            sys.exit(f"{kind}{problem}")
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    if "--store" in sys.argv:
        STORED.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
