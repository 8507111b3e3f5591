"""What every model package must keep, for glm4_moe."""

from archon_testing import ModelPluginSuite


class TestGLM4MoE(ModelPluginSuite):
    model = "glm4_moe"
