"""What stands in the way of SGLang servers, known before a run."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from archon_core.contracts.serving import ServerCheck
from archon_core.layout import Layout
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
    problems = [] if option == "rollout" else list(_scoring_problems(config, layout, option))
    if not attrgetter(option)(config).starts_servers:
        return ServerCheck(tuple(problems))
    problem = ranks_problem(options, layout)
    missing = _missing(options, option)
    return ServerCheck((*problems, *([problem] if problem else [])), "sglang" if missing else "", missing)


def _scoring_problems(config: Any, layout: Layout, option: str) -> Iterator[str]:
    sampling = config.gconfig
    if not sampling.greedy and sampling.temperature != 1:
        yield (
            f"gconfig.temperature: found {sampling.temperature:g} with {option}.backend={layout}; SGLang scores at "
            f"temperature 1 only; set it to 1, or use {option}.backend=served"
        )


def _missing(options: SglangOptions, option: str) -> str:
    install = f"{INSTALL}; or set {option}.addresses to running servers"
    if options.python:
        return "" if shutil.which(options.python) else f"is not at sglang.python={options.python}: {install}"
    if importlib.util.find_spec("sglang") is None:
        return f"is not in this environment, and usually needs one apart from the trainer's: {install}"
    return ""
