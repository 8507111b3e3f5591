"""vLLM's recorded contract, and what the driver makes of it."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy
import pytest
from vllm_contract import TABLE, problems_of, read_contract

from archon_core.config.rules import broken_rules
from archon_core.contracts.rollout import RolloutConfig
from archon_core.errors import ConfigError, ServerError
from archon_core.layout import parse_layout
from archon_vllm.checks import check_run
from archon_vllm.driver import VllmDriver
from archon_vllm.generation import read_completion, read_experts
from archon_vllm.in_server.register import ENGINES, register
from archon_vllm.options import NOT_PASSED, VllmOptions


@pytest.fixture(scope="module")
def table():
    return json.loads(TABLE.read_text(encoding="utf-8"))


def launch(options=None, layout="vllm:d2t2p2", port=8000, transport="shm", experts=False, lora=False):
    config = RolloutConfig(return_routed_experts=experts, weight_transport=transport, use_lora=lora)
    driver = VllmDriver(config, options=options, token="secret")
    return driver.launch("/model", layout=parse_layout(layout), index=0, host="127.0.0.1", port=port)


def flag_of(name):
    return "--" + name.removeprefix("no_").replace("_", "-")  # vLLM's flags of booleans have a negation


def test_the_table_finds_unknown_and_missing_fields_and_wrong_types(table):
    assert problems_of(table, "POST", "/pause?mode=keep", {}) == []
    assert problems_of(table, "POST", "/pause?mode=retract", {}) == ["/pause: unknown mode 'retract'"]
    assert problems_of(table, "POST", "/update_weight_version", {"version": "5"}) == [
        "/update_weight_version: unknown field 'version'",
        "/update_weight_version: 'new_version' is required",
    ]
    assert problems_of(table, "POST", "/update_weight_version", {"new_version": 5}) == [
        "/update_weight_version: 'new_version' is 5, not str"
    ]
    body = {"token_ids": [1, 2], "sampling_params": {"max_new_tokens": 3}}
    assert problems_of(table, "POST", "/inference/v1/generate", body) == [
        "sampling_params: unknown field 'max_new_tokens'"
    ]
    assert problems_of(table, "POST", "/nowhere", {}) == ["POST /nowhere: no such route"]


def test_every_flag_is_one_of_the_recorded_version(table):
    passed = {f.name for f in fields(VllmOptions)} - NOT_PASSED
    assert {flag_of(name) for name in passed} <= set(table["flags"])
    options = VllmOptions(enable_lora=True, lora_modules=["a=/a"], gdn_prefill_backend="triton")
    flags = [argument for argument in launch(options, experts=True).command if argument.startswith("--")]
    assert {flag.replace("--no-", "--") for flag in flags} <= set(table["flags"])
    assert len(set(flags)) == len(flags)


def test_servers_allow_adapters_to_be_loaded_where_a_run_publishes_them_apart():
    allowed = {
        transport: "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in launch(transport=transport, lora=True).environment
        for transport in ("shm", "distributed", "disk")
    }
    assert allowed == {"shm": False, "distributed": False, "disk": True}
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in launch(transport="disk").environment


def test_a_run_that_publishes_adapters_apart_needs_room_for_them():
    config = SimpleNamespace(
        actor=SimpleNamespace(use_lora=True, lora_rank=32, model_config=None, path=""),
        rollout=RolloutConfig(use_lora=True, weight_transport="disk", addresses=["a:1"]),
        vllm=VllmOptions(max_loras=1),
        gconfig=None,
        eval_gconfig=None,
    )
    found = check_run(config, layout=parse_layout("vllm:d1")).problems
    assert [problem.partition(": found ")[0] for problem in found] == [
        "vllm.enable_lora",
        "vllm.max_lora_rank",
        "vllm.max_loras",
    ]
    config.vllm = VllmOptions(enable_lora=True, max_lora_rank=32)
    assert check_run(config, layout=parse_layout("vllm:d1")).problems == ()
    config.rollout.max_head_offpolicyness = 7
    assert check_run(config, layout=parse_layout("vllm:d1")).problems == (
        "vllm.max_loras: found 8 with rollout.max_head_offpolicyness 7; rollout.use_lora loads adapters apart, and a "
        "request keeps the one that it started with, so up to 9 versions are in use; allowed is 9 or more; raise it, "
        "or lower the staleness",
    )
    config.vllm, config.rollout.weight_transport = VllmOptions(), "shm"
    assert check_run(config, layout=parse_layout("vllm:d1")).problems == ()


def test_the_layout_alone_decides_the_number_of_devices():
    launched = launch()
    command = launched.command
    assert launched.n_processes == 4
    assert command[command.index("--tensor-parallel-size") + 1] == "2"
    assert command[command.index("--pipeline-parallel-size") + 1] == "2"
    with pytest.raises(ConfigError, match="found port 0"):
        launch(port=0)


def test_the_secret_is_in_the_environment_only():
    launched = launch()
    assert launched.environment["VLLM_API_KEY"] == "secret"
    assert not any("secret" in argument for argument in launched.command)


def test_the_plugin_is_named_where_it_receives_weights():
    assert '{"backend":"archon_distributed"}' in launch(transport="distributed").command
    assert "--worker-extension-cls" in launch().command
    disk = launch(transport="disk").command
    assert "--weight-transfer-config" not in disk
    assert "--worker-extension-cls" not in disk


def test_options_become_arguments_and_null_ones_are_left_to_vllm():
    options = VllmOptions(python="/env/bin/python", max_model_len=None, enforce_eager=True, seed=3)
    command = launch(options).command
    assert command[:4] == ("/env/bin/python", "-m", "vllm.entrypoints.cli.main", "serve")
    assert "--max-model-len" not in command
    assert "--enforce-eager" in command
    assert command[command.index("--seed") + 1] == "3"


def test_a_foreign_worker_extension_and_bad_values_are_problems():
    assert [name for name, _ in VllmOptions(worker_extension_cls="areal.x").problems()] == ["worker_extension_cls"]
    assert not [*VllmOptions().problems()]
    assert [name for name, _ in broken_rules(VllmOptions(gpu_memory_utilization=1.5))] == ["gpu_memory_utilization"]


def test_registering_twice_is_registering_once(monkeypatch):
    registered = {}

    class Factory:
        @staticmethod
        def register_engine(name, module, cls):
            if name in registered:
                raise ValueError(f"Weight transfer engine '{name}' is already registered.")
            registered[name] = (module, cls)

    for name in ("vllm", "vllm.distributed", "vllm.distributed.weight_transfer"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    factory = ModuleType("factory")
    factory.WeightTransferEngineFactory = Factory
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer.factory", factory)
    register()
    register()
    assert tuple(registered) == ENGINES


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_routed_experts_are_read_from_numpys_format(dtype):
    values = numpy.arange(24).reshape(3, 2, 4).astype(dtype)
    buffer = io.BytesIO()
    numpy.save(buffer, values, allow_pickle=False)
    assert read_experts(base64.b64encode(buffer.getvalue()).decode()).tolist() == values.tolist()
    with pytest.raises(ServerError, match="malformed content"):
        read_experts(base64.b64encode(buffer.getvalue()[:-1]).decode())


def test_answers_without_versions_or_logprobs_are_errors():
    choice = {"token_ids": [5], "logprobs": {"content": [{"logprob": -1.0}]}, "finish_reason": "stop"}
    spans = [{"version": "3", "start": 0, "end": 1}]
    assert read_completion({"choices": [{**choice, "weight_versions": spans}]}).versions == (3,)
    for spoiled in (
        {**choice, "weight_versions": None},
        {**choice, "weight_versions": spans, "logprobs": None},
        {**choice, "weight_versions": [{**spans[0], "version": "checkpoint"}]},
        {**choice, "weight_versions": spans, "finish_reason": "error"},
    ):
        with pytest.raises(ServerError):
            read_completion({"choices": [spoiled]})


@pytest.mark.skipif("ARCHON_TEST_VLLM" not in os.environ, reason="ARCHON_TEST_VLLM names no environment with vLLM")
def test_the_recorded_contract_is_that_of_the_environment(table):
    (packages,) = Path(os.environ["ARCHON_TEST_VLLM"]).glob("lib/python3.*/site-packages")
    assert read_contract(packages) == table
