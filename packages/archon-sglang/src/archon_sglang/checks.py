"""What stands in the way of SGLang servers, known before a run."""

from __future__ import annotations

import importlib.util
import shutil
from typing import Any

from archon_core.contracts.serving import ServerCheck
from archon_core.layout import Layout
from archon_sglang.options import SglangOptions, ranks_problem

INSTALL = (
    "python -m venv sglang-env && sglang-env/bin/pip install 'sglang==0.5.23', then set "
    "sglang.python=sglang-env/bin/python; or set rollout.addresses to running servers"
)


def check_run(config: Any, *, layout: Layout) -> ServerCheck:
    """The problems of a run whose ``rollout.backend`` is SGLang. ``config`` is the run's whole configuration."""
    options: SglangOptions = getattr(config, "sglang", None) or SglangOptions()
    if config.rollout.addresses:
        return ServerCheck()
    problem = ranks_problem(options, layout)
    return ServerCheck((problem,) if problem else (), _missing(options))


def _missing(options: SglangOptions) -> str:
    if options.python:
        return "" if shutil.which(options.python) else f"sglang.python: found no program {options.python!r}; {INSTALL}"
    if importlib.util.find_spec("sglang") is None:
        return (
            "rollout.backend: found no sglang in this environment; its pins need one apart from the trainer's: "
            f"{INSTALL}"
        )
    return ""
