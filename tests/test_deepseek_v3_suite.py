"""What every model package must keep, for deepseek_v3. tests/test_glm_and_deepseek.py has the quick comparisons."""

import pytest

from archon_testing import ModelPluginSuite

pytestmark = pytest.mark.wide


class TestDeepseekV3(ModelPluginSuite):
    model = "deepseek_v3"
    layouts = ("t2e2",)
