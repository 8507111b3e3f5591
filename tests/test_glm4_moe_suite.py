"""What every model package must keep, for glm4_moe. tests/test_glm_and_deepseek.py has the quick comparisons."""

import pytest

from archon_testing import ModelPluginSuite

pytestmark = pytest.mark.wide


class TestGLM4MoE(ModelPluginSuite):
    model = "glm4_moe"
    layouts = ("t2e2",)
