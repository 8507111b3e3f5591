"""The files in ``examples/launching`` fit published schemas, agree with each other, and start possible runs."""

from __future__ import annotations

import copy
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import launching_schemas
from archon_core.cli.commands import build_command, known_commands
from archon_core.layout import parse_layout
from archon_train.experiment import load_config
from launching_schemas import FILES, STORED, Published, documents, problems

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "grpo_arithmetic.yaml"
PUBLISHED = os.environ.get("ARCHON_TEST_LAUNCHING", "")

DOCUMENTS = documents()
SCHEMAS = json.loads(STORED.read_text(encoding="utf-8"))
POD = DOCUMENTS["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]


@pytest.mark.parametrize("kind", ["JobSet", "Service", "StatefulSet", "skypilot"])
def test_a_file_fits_the_published_schema(kind):
    assert list(problems(SCHEMAS[kind], DOCUMENTS[kind])) == []


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("spec", "replicatedJobs", 0, "replicas"), "1", r".spec: {"),
        (("kind",), 7, ".kind: 7 is none of the alternatives"),
        (("sepc",), {}, ".sepc: unknown"),
    ],
)
def test_a_wrong_type_and_an_unknown_field_are_found(path, value, problem):
    wrong = copy.deepcopy(DOCUMENTS["JobSet"])
    inner = wrong
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    assert any(text.startswith(problem) for text in problems(SCHEMAS["JobSet"], wrong))


def test_a_missing_required_field_and_a_value_outside_an_enumeration_are_found():
    wrong = copy.deepcopy(DOCUMENTS["Service"])
    del wrong["spec"]["ports"][0]["port"]
    wrong["apiVersion"] = "v2"
    assert set(problems(SCHEMAS["Service"], wrong)) == {
        ".apiVersion: found 'v2'; allowed is ['v1']",
        ".spec.ports[0].port: missing",
    }


def test_what_is_stored_of_a_schema_is_what_a_value_uses_of_it():
    definitions = {
        "Pod": {"type": "object", "properties": {"name": {"type": "string", "description": "x"}, "other": {}}}
    }
    schema = {"type": "array", "items": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/Pod"}]}}
    published = Published(schema, definitions)
    pod = {"type": "object", "properties": {"name": {"type": "string"}}, "additionalProperties": False}
    assert published.used([{"name": "a"}]) == {"type": "array", "items": {"anyOf": [pod]}}
    with pytest.raises(ValueError, match="nmae unknown"):
        published.used([{"nmae": "a"}])


@pytest.mark.skipif(
    not PUBLISHED,
    reason="needs ARCHON_TEST_LAUNCHING=FOLDER: pip install --no-deps --target FOLDER kubernetes-validate "
    "kubeflow-trainer-api skypilot",
)
def test_the_stored_schemas_are_those_of_the_published_packages():
    script = Path(launching_schemas.__file__)
    printed = subprocess.run([sys.executable, str(script), PUBLISHED], capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    assert json.loads(printed.stdout) == SCHEMAS


def starts() -> dict[str, tuple[str, list[str]]]:
    """File -> its torchrun command with the variables that the machine sets, and the shell words of the command."""
    variables = {
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "LAYOUT": DOCUMENTS["skypilot"]["envs"]["LAYOUT"],
        "SLURM_NNODES": "2",
    }
    jobset = POD["template"]["spec"]["containers"][0]["command"]
    texts = {
        "skypilot.yaml": DOCUMENTS["skypilot"]["run"],
        "slurm_torchrun.sh": (FILES / "slurm_torchrun.sh").read_text(encoding="utf-8").partition("\nsrun ")[2],
    }
    found = {"jobset.yaml": jobset}
    for file, text in texts.items():
        for name, value in variables.items():
            text = text.replace(f"${name}", value)
        found[file] = shlex.split(text.replace("\\\n", " "))
    return found


@pytest.mark.parametrize("file", ["jobset.yaml", "skypilot.yaml", "slurm_torchrun.sh"])
def test_a_file_starts_as_many_ranks_as_its_layout_has_with_options_that_exist(file):
    words = starts()[file]
    options = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--"))
    at = words.index("train")
    assert words[0] == "torchrun"
    assert words[at - 2 : at] == ["-m", "archon_core.cli"]
    assert Path(words[at + 1]).name == "run.yaml"
    config = load_config(EXAMPLE, words[at + 2 :]).config
    n_nodes, per_node = int(options["nnodes"]), int(options["nproc-per-node"])
    assert (config.cluster.n_nodes, config.cluster.n_gpus_per_node) == (n_nodes, per_node)
    assert parse_layout(config.actor.backend).world_size == n_nodes * per_node


def test_the_jobset_has_as_many_pods_and_devices_as_it_starts_ranks():
    assert DOCUMENTS["JobSet"]["apiVersion"] == "jobset.x-k8s.io/v1alpha2", "group and version of the published CRD"
    container = POD["template"]["spec"]["containers"][0]
    options = dict(word.removeprefix("--").split("=", 1) for word in container["command"] if word.startswith("--"))
    assert POD["parallelism"] == POD["completions"] == int(options["nnodes"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(options["nproc-per-node"])
    name, job = DOCUMENTS["JobSet"]["metadata"]["name"], DOCUMENTS["JobSet"]["spec"]["replicatedJobs"][0]["name"]
    assert options["master-addr"] == f"{name}-{job}-0-0.{name}", "as JobSet names the first pod"
    assert container["ports"] == [{"containerPort": int(options["master-port"])}]


def test_trainer_and_servers_find_each_other():
    lines = (FILES / "jobset.yaml").read_text(encoding="utf-8").partition("# With servers.yaml:\n")[2].splitlines()
    given = [line.strip().removeprefix("# - ") for line in lines if line.strip().startswith("# - ")]
    config = load_config(EXAMPLE, given).config
    service, servers = DOCUMENTS["Service"], DOCUMENTS["StatefulSet"]
    [container] = servers["spec"]["template"]["spec"]["containers"]
    port = service["spec"]["ports"][0]
    assert config.rollout.addresses == [f"{service['metadata']['name']}:{port['port']}"]
    assert (config.cluster.name_resolve.type, config.rollout.start_servers) == ("dns", False)
    assert service["spec"]["selector"] == servers["spec"]["template"]["metadata"]["labels"]
    assert container["ports"] == [{"name": port["name"], "containerPort": port["port"]}]
    program, name, *words = container["command"]
    assert program == "archon"
    known = {option for parameter in build_command(known_commands()[name]).params for option in parameter.opts}
    options = dict(word.split("=", 1) for word in words)
    assert set(options) <= known
    assert (options["--host"], options["--port"]) == ("0.0.0.0", str(port["port"]))
    tokens = [
        entry["valueFrom"]["secretKeyRef"] | {"optional": True}
        for one in (container, POD["template"]["spec"]["containers"][0])
        for entry in one["env"]
        if entry["name"] == "ARCHON_SERVER_TOKEN"
    ]
    assert len(tokens) == 2
    assert tokens[0] == tokens[1]
