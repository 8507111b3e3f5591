"""The engines that ``rollout.backend`` can name, with and without what runs servers."""

from __future__ import annotations

import pytest

from archon_core.errors import UnknownNameError
from archon_core.plugins.inference_engines import find_inference_engine, inference_engines, missing_engine_packages

DRIVER = """
@hookimpl
def archon_server_drivers():
    return [ServerDriverSpec(name="vllm", target="a.b:c", aliases=("vllm-x",), letters="dtp", summary="theirs")]
"""
RUNNER = """
@hookimpl
def archon_inference_engines():
    return [
        InferenceEngineSpec(name="local", target="a.b:local", letters=""),
        InferenceEngineSpec(name="served", target="a.b:servers", letters="dt", runs_servers=True),
    ]

@hookimpl
def archon_server_drivers():
    return [ServerDriverSpec(name="served", target="a.b:served", summary="other")]
"""


def test_a_driver_is_an_engine_where_one_runs_servers(site, build):
    site.install("archon-vllm", DRIVER)
    site.install("archon-rollout", RUNNER)
    registry = build()
    assert [engine.name for engine in inference_engines(registry)] == ["local", "served", "vllm"]
    engine = find_inference_engine(registry, "vllm-x")
    assert (engine.name, engine.target, engine.letters) == ("vllm", "a.b:servers", "dtp")
    assert (engine.origin, engine.summary) == ("archon-vllm", "theirs")
    assert find_inference_engine(registry, "served").summary == ""
    assert missing_engine_packages(registry, "vllm") == ()
    assert missing_engine_packages(registry, "sglang") == ("archon-sglang",)
    with pytest.raises(UnknownNameError, match="pip install archon-sglang"):
        find_inference_engine(registry, "sglang")


def test_a_driver_alone_needs_what_runs_servers(site, build):
    site.install("archon-vllm", DRIVER)
    registry = build()
    assert inference_engines(registry) == []
    with pytest.raises(UnknownNameError, match=r"'vllm': found a driver of its servers.*pip install archon-rollout"):
        find_inference_engine(registry, "vllm")
    assert missing_engine_packages(registry, "vllm") == ("archon-rollout",)
    assert missing_engine_packages(registry, "sglang") == ("archon-sglang", "archon-rollout")
    assert missing_engine_packages(registry, "served") == ("archon-rollout",)
    assert missing_engine_packages(registry, "strange") == ()
