import logging

from archon_train.run.log import shown_log


def test_lines_that_core_logs_are_shown_while_the_run_lasts_and_not_after():
    shown = []
    logger = logging.getLogger("archon_engine.engine")
    with shown_log(shown.append):
        logger.info("Initialized with %s", "pp=1")
        logger.debug("too detailed")
        logging.getLogger("another_library").info("not ours")
    logger.info("after")
    assert shown == ["Initialized with pp=1"]
