"""Dry runs with ``scheduler.type: ray`` print the plan of processes without Ray."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from archon_core.cli.main import main

EXAMPLES = Path(__file__).parents[1] / "examples"


def dry_run(name: str, *overrides: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["train", str(EXAMPLES / f"{name}.yaml"), "--dry-run", *overrides])
    return int(ended.value.code or 0)


@pytest.mark.parametrize(("name", "devices", "servers"), [("archon_qwen3_8b", 24, 4), ("archon_qwen3_moe", 32, 4)])
def test_an_example_in_areals_form_has_a_plan_for_all_devices(
    name: str, devices: int, servers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry_run(name, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert "archon-ray" not in str(plan["missing_packages"])
    places = {(p["node"], device) for part in plan["parts"] for p in part["processes"] for device in p["devices"]}
    assert len(places) == devices
    assert [part["name"] for part in plan["parts"]] == ["trainer", *(f"server {n}" for n in range(servers))]
    assert "ray" not in sys.modules


def test_what_ray_cannot_do_is_a_decision_or_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    spec = "actor.scheduling_spec={cpu: 2, image: a.sif, nodelist: n1}"
    assert dry_run("grpo_arithmetic", "--json", "scheduler.type=ray", spec) == 0
    decisions = json.loads(capsys.readouterr().out)["decisions"]
    found = {d["option"]: d["reason"] for d in decisions if "scheduling_spec" in d["option"]}
    assert found == {"actor.scheduling_spec.image": "scheduler.type=ray does not use it"}
    assert dry_run("grpo_arithmetic", "scheduler.type=ray", "ray.address=ray://head:10001") == 2
    assert "allowed are HOST:PORT of the cluster's head" in " ".join(capsys.readouterr().err.split())
