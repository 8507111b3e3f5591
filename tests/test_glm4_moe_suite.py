"""What every model package must keep, for glm4_moe."""

from archon_testing import ModelPluginSuite


class TestGLM4MoE(ModelPluginSuite):
    model = "glm4_moe"
    layouts = ("t2e2",)  # tests/test_verify.py has others
