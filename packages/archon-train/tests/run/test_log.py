import logging

import pytest

from archon_core.plugins import PluginStatus, RewardSpec
from archon_core.plugins.registry import Registry
from archon_train.run import log
from archon_train.run.log import shown_log

PLUGINS = [
    PluginStatus("servers", "my-servers", "1", "my_servers.plugin:hooks", specs=(RewardSpec("r", target="m:f"),)),
    PluginStatus("broken", "broken", "1", "another_library.plugin", status="failed", cause="it does not import"),
]


@pytest.mark.parametrize("name", ["archon_engine.engine", "archon_train.run.lock", "my_servers.pool.watching"])
def test_lines_that_archon_and_plugins_log_are_shown_while_the_run_lasts_and_not_after(name, monkeypatch):
    monkeypatch.setattr(log, "registry", lambda: Registry(PLUGINS))
    shown = []
    logger = logging.getLogger(name)
    with shown_log(shown.append):
        logger.info("Initialized with %s", "pp=1")
        logger.debug("too detailed")
        logging.getLogger("another_library").info("not ours")
    logger.info("after")
    assert shown == ["Initialized with pp=1"]
