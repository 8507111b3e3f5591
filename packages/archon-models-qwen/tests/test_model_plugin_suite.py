"""What every model package must keep, for the dense families.

Larger layouts are in tests/test_verify.py: c2t2 of qwen3, and in wide runs t4 of qwen2 and stages of qwen3_5;
tests/test_uneven_shards.py has tensor ranks of qwen2.
"""

from archon_testing import ModelPluginSuite


class TestQwen2(ModelPluginSuite):
    model = "qwen2"
    layouts = ("d2",)


class TestQwen3(ModelPluginSuite):
    model = "qwen3"
    layouts = ("d2", "p2")


class TestQwen35(ModelPluginSuite):
    model = "qwen3_5"
    layouts = ("c2",)
