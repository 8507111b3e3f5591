"""What every model package must keep, for the models that need experts of another package."""

import pytest

from archon_testing import ModelPluginSuite


class TestQwen3MoE(ModelPluginSuite):
    model = "qwen3_moe"
    layouts = ("d2e2", "(attn:c2|ffn:t2e1)")  # with t2 and e: tests/test_experts_engine.py


@pytest.mark.wide
class TestQwen35MoE(ModelPluginSuite):
    model = "qwen3_5_moe"
    layouts = ("d2e2",)
