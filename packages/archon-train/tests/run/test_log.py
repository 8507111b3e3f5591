import logging

import pytest

from archon_train.run.log import shown_log


@pytest.mark.parametrize("name", ["archon_engine.recomputation", "archon_engine.engine", "archon_train.run.lock"])
def test_lines_that_archon_logs_are_shown_while_the_run_lasts_and_not_after(name):
    shown = []
    logger = logging.getLogger(name)
    with shown_log(shown.append):
        logger.info("Initialized with %s", "pp=1")
        logger.debug("too detailed")
        logging.getLogger("another_library").info("not ours")
    logger.info("after")
    assert shown == ["Initialized with pp=1"]
