"""What every model package must keep, for the dense families."""

from archon_testing import ModelPluginSuite


class TestQwen2(ModelPluginSuite):
    model = "qwen2"
    layouts = ("t2",)


class TestQwen3(ModelPluginSuite):
    model = "qwen3"


class TestQwen35(ModelPluginSuite):
    model = "qwen3_5"
    layouts = ("c2t2",)
