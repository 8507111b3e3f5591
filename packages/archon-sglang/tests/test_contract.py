"""SGLang's recorded contract, and what the driver makes of it."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from types import SimpleNamespace

import pytest
from sglang_contract import TABLE, problems_of, read_contract

from archon_core.config.rules import broken_rules
from archon_core.contracts.rollout import RolloutConfig
from archon_core.errors import ConfigError
from archon_core.layout import parse_layout
from archon_sglang.checks import check_run
from archon_sglang.driver import SglangDriver
from archon_sglang.options import NOT_PASSED, REMOVED, SglangOptions, flag_of


@pytest.fixture(scope="module")
def table():
    return json.loads(TABLE.read_text(encoding="utf-8"))


def launch(options=None, layout="sglang:d2t4", port=8000, **config):
    driver = SglangDriver(RolloutConfig(**config), options=options)
    return driver.launch("/model", layout=parse_layout(layout), index=0, host="127.0.0.1", port=port)


def test_the_table_finds_unknown_and_missing_fields_and_wrong_types(table):
    path = "/update_weights_from_disk"
    assert problems_of(table, "POST", path, {"model_path": "m", "weight_version": "5"}) == []
    assert problems_of(table, "POST", path, {"model_path": "m", "version": "5"}) == [f"{path}: unknown field 'version'"]
    assert problems_of(table, "POST", path, {"weight_version": "5"}) == [f"{path}: 'model_path' is required"]
    (wrong,) = problems_of(table, "POST", path, {"model_path": "m", "weight_version": 5})
    assert wrong == f"{path}: 'weight_version' is 5, not Optional[str]"
    assert problems_of(table, "GET", path, None) == [f"GET {path}: no such route"]
    (mode,) = problems_of(table, "POST", "/pause_generation", {"mode": "keep"})
    assert "Literal" in mode
    body = {"input_ids": [1, 2], "sampling_params": {"max_tokens": 3}}
    assert problems_of(table, "POST", "/generate", body) == ["sampling: unknown field 'max_tokens'"]


def test_setting_a_version_aborts_all_requests_by_default(table):
    assert table["classes"]["UpdateWeightVersionReqInput"]["abort_all_requests"]["default"] == "True"
    assert table["classes"]["UpdateWeightFromDiskReqInput"]["abort_all_requests"]["default"] == "False"


def test_every_option_is_a_flag_of_the_recorded_version(table):
    passed = {f.name for f in fields(SglangOptions)} - NOT_PASSED
    assert {flag_of(name) for name in passed} <= set(table["flags"])
    assert not {flag_of(name) for name in REMOVED} & set(table["flags"])


def test_every_flag_of_the_command_is_one_of_the_recorded_version(table):
    launched = launch(SglangOptions(lora_paths=["a=/a", "b=/b"], cuda_graph_bs=[1, 2]), layout="sglang:d2t2")
    flags = [argument for argument in launched.command if argument.startswith("--")]
    assert set(flags) <= set(table["flags"])
    assert len(set(flags)) == len(flags)


def test_servers_that_load_adapters_know_what_these_may_adapt(table):
    command = launch(SglangOptions(enable_lora=True, max_lora_rank=8), use_lora=True).command
    assert command[command.index("--lora-target-modules") + 1] == "all"
    assert "--lora-target-modules" in table["flags"]
    assert "--lora-target-modules" not in launch(SglangOptions(lora_paths=["a=/a"]), use_lora=True).command
    assert "--lora-target-modules" not in launch(SglangOptions()).command


def test_a_run_that_publishes_adapters_apart_needs_room_for_them():
    config = SimpleNamespace(
        actor=SimpleNamespace(use_lora=True, lora_rank=32),
        rollout=RolloutConfig(use_lora=True, addresses=["a:1"]),
        sglang=SglangOptions(max_loaded_loras=1),
    )
    found = check_run(config, layout=parse_layout("sglang:d1")).problems
    assert [problem.partition(": found ")[0] for problem in found] == [
        "sglang.enable_lora",
        "sglang.max_lora_rank",
        "sglang.max_loaded_loras",
    ]
    config.sglang = SglangOptions(enable_lora=True, max_lora_rank=32)
    assert check_run(config, layout=parse_layout("sglang:d1")).problems == ()
    config.rollout.max_head_offpolicyness = 7
    (problem,) = check_run(config, layout=parse_layout("sglang:d1")).problems
    assert "max_loaded_loras: found 8 with rollout.max_head_offpolicyness 7" in problem
    assert problem.endswith("allowed is 9 or more; raise it, or lower the staleness")


def test_the_layout_alone_decides_the_number_of_devices():
    launched = launch(SglangOptions(ep_size=2, dp_size=2, enable_dp_attention=True))
    command = list(launched.command)
    assert launched.n_processes == 4
    assert command[command.index("--tp-size") + 1] == "4"
    with pytest.raises(ConfigError, match=r"sglang\.ep_size: found 3; allowed are divisors of 4"):
        launch(SglangOptions(ep_size=3))
    assert [name for name, _ in SglangOptions(dp_size=2).problems()] == ["dp_size"]
    assert not [*SglangOptions(dp_size=2, enable_dp_attention=True).problems()]


def test_options_become_arguments_and_null_ones_are_left_to_sglang():
    options = SglangOptions(python="/env/bin/python", attention_backend=None, disable_cuda_graph=True, random_seed=3)
    command = launch(options).command
    assert command[:3] == ("/env/bin/python", "-m", "sglang.launch_server")
    assert "--attention-backend" not in command
    assert "--disable-cuda-graph" in command
    assert command[command.index("--random-seed") + 1] == "3"


def test_each_start_has_another_name():
    names = [c[c.index("--served-model-name") + 1] for c in (launch().command, launch().command)]
    assert names[0] != names[1]


def test_an_unknown_port_is_refused():
    with pytest.raises(ConfigError, match="found port 0"):
        launch(port=0)


def test_removed_options_and_bad_values_are_problems():
    assert [name for name, _ in SglangOptions(enable_ep_moe=True, torchao_config="int8").problems()] == [
        "enable_ep_moe",
        "torchao_config",
    ]
    assert not [*SglangOptions().problems()]
    assert [name for name, _ in broken_rules(SglangOptions(mem_fraction_static=1.5, dp_size=0))] == [
        "mem_fraction_static",
        "dp_size",
    ]


@pytest.mark.skipif("ARCHON_TEST_SGLANG" not in os.environ, reason="ARCHON_TEST_SGLANG names no wheel of SGLang")
def test_the_recorded_contract_is_that_of_the_wheel(table):
    found = read_contract(os.environ["ARCHON_TEST_SGLANG"])
    assert found["version"] == table["version"]
    assert found["flags"] == table["flags"]
    assert found["routes"] == table["routes"]
    assert found["classes"] == table["classes"]
