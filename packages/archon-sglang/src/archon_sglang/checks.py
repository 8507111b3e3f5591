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
    if not config.rollout.starts_servers:
        return ServerCheck()
    problem = ranks_problem(options, layout)
    missing = _missing(options)
    return ServerCheck((problem,) if problem else (), "sglang" if missing else "", missing)


def _missing(options: SglangOptions) -> str:
    if options.python:
        return "" if shutil.which(options.python) else f"is not at sglang.python={options.python}: {INSTALL}"
    if importlib.util.find_spec("sglang") is None:
        return f"is not in this environment, and usually needs one apart from the trainer's: {INSTALL}"
    return ""
