from archon_testing import ModelPluginSuite


class TestLlama(ModelPluginSuite):
    model = "plain_llama"
