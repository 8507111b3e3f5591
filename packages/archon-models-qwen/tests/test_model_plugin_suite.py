"""What every model package must keep, for both families."""

from archon_testing import ModelPluginSuite


class TestQwen2(ModelPluginSuite):
    model = "qwen2"


class TestQwen3(ModelPluginSuite):
    model = "qwen3"
