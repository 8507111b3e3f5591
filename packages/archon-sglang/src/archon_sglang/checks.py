"""Problems of SGLang servers that can be found before a run."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from archon_core.contracts.serving import ServerCheck
from archon_core.layout import Layout
from archon_core.serving.program_checks import missing_program, score_temperature_problems
from archon_sglang.options import SglangOptions, ranks_problem

INSTALL = (
    "python -m venv sglang-env && sglang-env/bin/pip install 'sglang==0.5.23', then set "
    "sglang.python=sglang-env/bin/python"
)


def check_run(config: Any, *, layout: Layout, option: str = "rollout") -> ServerCheck:
    """The problems of a run whose servers in the section ``option`` are SGLang's.

    Args:
        config: the whole configuration.
        layout: of the servers.
        option: their section. Servers in other sections than ``rollout`` score, and do not sample.
    """
    options: SglangOptions = getattr(config, "sglang", None) or SglangOptions()
    problems = [] if option == "rollout" else list(score_temperature_problems("SGLang", config.gconfig, layout, option))
    if not attrgetter(option)(config).starts_servers:
        return ServerCheck(tuple(problems))
    problem = ranks_problem(options, layout)
    missing = missing_program("sglang", options.python, install=INSTALL, option=option)
    return ServerCheck((*problems, *([problem] if problem else [])), "sglang" if missing else "", missing)
