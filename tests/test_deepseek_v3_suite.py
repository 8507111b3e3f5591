"""What every model package must keep, for deepseek_v3."""

from archon_testing import ModelPluginSuite


class TestDeepseekV3(ModelPluginSuite):
    model = "deepseek_v3"
