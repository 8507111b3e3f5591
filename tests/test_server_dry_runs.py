"""What a dry run says about ``rollout.backend=vllm``, ``sglang`` and ``served``, with all packages installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from archon_core.errors import ArchonError, ConfigError
from archon_core.plugins import registry
from archon_train import weight_devices
from archon_train.experiment import load_config
from archon_train.preflight import plan_run

EXAMPLE = Path(__file__).parents[1] / "examples" / "grpo_arithmetic.yaml"
PYTHON = f"vllm.python={sys.executable}"


def plan(*overrides):
    loaded = load_config(EXAMPLE, ["actor.backend=archon:d1", "cluster.n_gpus_per_node=4", *overrides])
    return plan_run(loaded, registry())


def texts(found):
    return [obstacle.text for obstacle in found.obstacles]


def effective(decisions, option):
    return [decision.effective for decision in decisions if decision.option == option]


def missing(found):
    return {need.package.name: (need.package.matter, need.purposes) for need in found.needs}


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_missing_program_is_named_with_how_to_get_it(kind):
    found = plan(f"rollout.backend={kind}:d1")
    matter, purposes = missing(found)[kind]
    assert matter.startswith("is not in this environment")
    assert f"{kind}-env/bin/pip install" in matter
    assert purposes == (f"rollout.backend: {kind}:d1",)
    assert not found.is_wrong
    matter, _ = missing(plan(f"rollout.backend={kind}:d1", f"{kind}.python=/nowhere/python"))[kind]
    assert matter.startswith(f"is not at {kind}.python=/nowhere/python: ")
    assert plan(f"rollout.backend={kind}:d1", f"{kind}.python={sys.executable}").can_run
    assert plan(f"rollout.backend={kind}:d1", "rollout.addresses=[10.0.0.1:8000]").can_run


@pytest.mark.parametrize(("backend", "transport"), [("vllm:d1t2", "shm"), ("sglang:d2", "disk"), ("served:d1", "shm")])
def test_the_transport_that_servers_prefer_is_a_decision(backend, transport):
    found = plan(f"rollout.backend={backend}", PYTHON) if "vllm" in backend else plan(f"rollout.backend={backend}")
    assert effective(found.decisions, "rollout.weight_transport") == [transport]
    reason = f"the first transport that {backend.partition(':')[0]} supports"
    assert [one.reason for one in found.decisions if one.option == "rollout.weight_transport"] == [reason]
    assert effective(plan().decisions, "rollout.weight_transport") == []


@pytest.mark.parametrize(
    ("address", "transport", "reason"),
    [("127.0.0.1:80", "shm", "supports"), ("192.0.2.7:80", "disk", "supports between machines")],
)
def test_the_transport_to_running_servers_depends_on_where_they_are(address, transport, reason):
    found = plan("rollout.backend=served:d1", f"rollout.addresses=[{address}]")
    [decision] = [one for one in found.decisions if one.option == "rollout.weight_transport"]
    assert (decision.effective, decision.reason) == (transport, f"the first transport that served {reason}")


@pytest.mark.parametrize(
    ("backend", "transport", "allowed"),
    [
        ("sglang:d1", "shm", "disk"),
        ("vllm:d1t2", "distributed", "shm, disk"),
        ("vllm:d1p2", "xccl", "shm, disk"),
        ("vllm:d1", "ipc", "shm, distributed, disk"),
        ("served:d1t2", "ipc", "shm, disk"),
    ],
)
def test_a_transport_that_servers_do_not_have_is_refused(backend, transport, allowed):
    found = plan(f"rollout.backend={backend}", f"rollout.weight_transport={transport}", "rollout.addresses=[h:1]")
    assert found.is_wrong
    assert texts(found) == [
        f"rollout.weight_transport: found {transport}; servers of {backend} receive weights by {allowed}; choose one"
    ]


@pytest.mark.parametrize(
    ("options", "text", "allowed"),
    [
        (["weight_transport=ipc"], "rollout.weight_transport: found ipc", "shm, disk, distributed"),
        (["weight_transport=distributed", "weight_group=nccl"], "rollout.weight_group: found nccl", "gloo"),
    ],
)
def test_transports_in_device_memory_are_refused_on_cpus_with_the_allowed_ones(options, text, allowed, monkeypatch):
    options = ["rollout.backend=served:d1", *(f"rollout.{option}" for option in options)]
    text += ", which moves weights in the memory of a cuda device"
    found = plan(*options, "cluster.n_gpus_per_node=0")
    assert found.is_wrong
    assert texts(found) == [f"{text}; cluster.n_gpus_per_node=0 runs on CPUs; allowed there: {allowed}"]
    monkeypatch.setattr(weight_devices, "DEVICE_FILES", ("/nonexistent",))
    found = plan(*options)
    assert not found.is_wrong, "another machine may have the device"
    assert texts(found) == [f"{text}; this machine has none; allowed here: {allowed}"]
    monkeypatch.setattr(weight_devices, "DEVICE_FILES", ("/dev/null",))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert plan(*options).can_run
    [problem] = texts(plan("rollout.backend=served:d1", "rollout.weight_group=nccl"))
    assert problem.startswith("rollout.weight_group: found nccl with rollout.weight_transport=shm")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("vllm.tensor_parallel_size=2", r"vllm\.tensor_parallel_size: found 2.*rollout\.backend, such as vllm:d1t2"),
        ("vllm.data_parallel_size=4", r"vllm\.data_parallel_size: found 4.*rollout\.backend, such as vllm:d4"),
        ("vllm.max_num_seq=4", r"vllm\.max_num_seq.*max_num_seqs"),
        ("vllm.gpu_memory_utilization=2", r"vllm\.gpu_memory_utilization: found 2"),
    ],
)
def test_options_of_vllm_that_change_devices_or_do_not_exist_are_refused(option, message):
    with pytest.raises(ConfigError, match=message):
        plan("rollout.backend=vllm:d1", option)


@pytest.mark.parametrize("option", ["tp_size=2", "pp_size=2", "nnodes=2", "dp_size=2"])
def test_options_of_sglang_that_change_devices_are_refused(option):
    with pytest.raises(ConfigError, match=rf"sglang\.{option[:-2]}: found 2.*rollout\.backend"):
        plan("rollout.backend=sglang:d1", f"sglang.{option}")


def test_sampling_whose_log_probabilities_vllm_cannot_give_is_refused():
    [text] = texts(plan("rollout.backend=vllm:d1", PYTHON, "gconfig.top_p=0.9"))
    assert text.startswith("gconfig: found top_p 0.9 and top_k 0; allowed with vLLM are 1 and 0")
    [text] = texts(plan("rollout.backend=sglang:d1t2", "rollout.addresses=[]", "sglang.ep_size=3", "sglang.python=sh"))
    assert text.startswith("sglang.ep_size: found 3; allowed are divisors of 2")


def test_mixtures_of_experts_on_vllm_are_refused_unless_the_user_allows_them(tmp_path):
    (tmp_path / "config.json").write_text('{"num_experts": 8}', encoding="utf-8")
    mixture = ["rollout.backend=vllm:d1", PYTHON, f"actor.path={tmp_path}", "actor.model_config=null"]
    [text] = [text for text in texts(plan(*mixture)) if "vllm with a mixture" in text]
    assert text.startswith(f"rollout.backend: found vllm with a mixture of experts (actor.path={tmp_path}); vLLM 0.32")
    [text] = texts(plan(*mixture[:2], "actor.model_config.num_experts=4"))
    assert "a mixture of experts (actor.model_config)" in text
    assert "vllm with a mixture" not in " ".join(texts(plan(*mixture, "vllm.allow_experts=true")))
    assert texts(plan(*mixture[:2])) == []


@pytest.mark.parametrize(
    ("backend", "mode", "transport"),
    [
        ("vllm:d1", "xccl", "distributed"),
        ("vllm:d1", "awex", "shm"),
        ("vllm:d1", "disk", "disk"),
        ("vllm:d1t2", "xccl", "shm"),
        ("sglang:d1t2", "xccl", "disk"),
        ("served:d1", "xccl", "distributed"),
        ("served:d1", "awex", "shm"),
    ],
)
def test_areals_update_mode_becomes_a_transport_that_the_servers_have(backend, mode, transport):
    loaded = load_config(EXAMPLE, [f"rollout.backend={backend}", f"actor.weight_update_mode={mode}"])
    assert loaded.config.rollout.weight_transport == transport
    [decision] = [one for one in loaded.decisions if one.option == "actor.weight_update_mode"]
    assert (decision.requested, decision.effective) == (mode, f"rollout.weight_transport={transport}")


def test_areals_update_mode_yields_to_our_option_and_has_no_effect_without_servers():
    options = ["rollout.backend=served:d1", "actor.weight_update_mode=xccl", "rollout.weight_transport=disk"]
    loaded = load_config(EXAMPLE, options)
    assert loaded.config.rollout.weight_transport == "disk"
    assert effective(loaded.decisions, "actor.weight_update_mode") == ["no effect"]
    loaded = load_config(EXAMPLE, ["actor.weight_update_mode=awex"])
    assert loaded.config.rollout.weight_transport is None
    [decision] = [one for one in loaded.decisions if one.option == "actor.weight_update_mode"]
    assert (decision.effective, decision.reason) == ("no effect", "no server gets weights")


@pytest.mark.parametrize("backend", ["vllm:d1", "local"])
def test_an_update_mode_that_areal_does_not_have_is_refused_also_without_servers(backend):
    override = "actor.weight_update_mode=nccl"
    with pytest.raises(
        ArchonError, match=rf"^override '{override}': .*_mode: found nccl; allowed are xccl, disk, awex; choose one"
    ):
        load_config(EXAMPLE, [f"rollout.backend={backend}", override])
