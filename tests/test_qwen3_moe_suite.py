"""What every model package must keep, for the model that needs experts of another package."""

from archon_testing import ModelPluginSuite


class TestQwen3MoE(ModelPluginSuite):
    model = "qwen3_moe"
