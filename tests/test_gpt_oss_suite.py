"""gpt-oss keeps what every model package must keep, with the experts of archon-moe."""

import pytest

from archon_testing import ModelPluginSuite

pytestmark = pytest.mark.wide


class TestGptOss(ModelPluginSuite):
    model = "gpt_oss"
    layouts = ("p2", "t2e2", "(attn:c2|ffn:t2e1)")
