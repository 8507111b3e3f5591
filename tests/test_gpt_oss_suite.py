"""gpt-oss keeps what every model package must keep, with the experts of archon-moe."""

from archon_testing import ModelPluginSuite


class TestGptOss(ModelPluginSuite):
    model = "gpt_oss"
