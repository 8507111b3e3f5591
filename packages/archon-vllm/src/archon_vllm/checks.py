"""What stands in the way of vLLM servers, known before a run."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from typing import Any

from archon_core.contracts.serving import ServerCheck
from archon_core.layout import Layout
from archon_vllm.options import VllmOptions

INSTALL = (
    "python -m venv vllm-env && vllm-env/bin/pip install vllm 'archon-vllm[server]', then set "
    "vllm.python=vllm-env/bin/python; or set rollout.addresses to running servers"
)


def check_run(config: Any, *, layout: Layout) -> ServerCheck:
    """The problems of a run whose ``rollout.backend`` is vLLM. ``config`` is the run's whole configuration."""
    options: VllmOptions = getattr(config, "vllm", None) or VllmOptions()
    missing = "" if config.rollout.addresses else _missing(options)
    return ServerCheck(tuple(_problems(config)), missing)


def _problems(config: Any) -> Iterator[str]:
    for section in ("gconfig", "eval_gconfig"):
        sampling = getattr(config, section)
        if sampling is not None and not sampling.greedy and (sampling.top_p < 1 or sampling.top_k > 0):
            yield (
                f"{section}: found top_p {sampling.top_p:g} and top_k {sampling.top_k}; allowed with vLLM are 1 and 0, "
                "because it returns log-probabilities of the distribution after the cut; use rollout.backend=served, "
                "or remove them"
            )


def _missing(options: VllmOptions) -> str:
    if options.python:
        return "" if shutil.which(options.python) else f"vllm.python: found no program {options.python!r}; {INSTALL}"
    if importlib.util.find_spec("vllm") is None:
        return (
            f"rollout.backend: found no vllm in this environment; its pins need one apart from the trainer's: {INSTALL}"
        )
    return ""
