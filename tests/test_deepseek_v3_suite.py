"""What every model package must keep, for deepseek_v3."""

from archon_testing import ModelPluginSuite


class TestDeepseekV3(ModelPluginSuite):
    model = "deepseek_v3"
    layouts = ("t2e2",)  # tests/test_verify.py has others
