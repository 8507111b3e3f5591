"""Problems of SGLang servers that can be found before a run."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from archon_core.contracts.serving import ServerCheck
from archon_core.layout import Layout
from archon_core.serving.adapter_versions import versions_in_use
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
    problems = (
        _adapter_problems(config, options)
        if option == "rollout"
        else list(score_temperature_problems("SGLang", config.gconfig, layout, option))
    )
    if not attrgetter(option)(config).starts_servers:
        return ServerCheck(tuple(problems))
    problem = ranks_problem(options, layout)
    missing = missing_program("sglang", options.python, install=INSTALL, option=option)
    return ServerCheck((*problems, *([problem] if problem else [])), "sglang" if missing else "", missing)


def _adapter_problems(config: Any, options: SglangOptions) -> list[str]:
    """Adapters that are loaded apart need room in the server."""
    trains = getattr(config.actor, "use_lora", False)  # an option of archon-lora
    if not (trains and config.rollout.use_lora):
        return []
    problems = []
    if not options.enable_lora:
        problems.append(
            f"sglang.enable_lora: found {options.enable_lora}; rollout.use_lora loads adapters apart, which a server "
            "without any at its start must be prepared for; set it to true"
        )
    if options.max_lora_rank is None or options.max_lora_rank < config.actor.lora_rank:
        problems.append(
            f"sglang.max_lora_rank: found {options.max_lora_rank}; a server without adapters at its start must know "
            f"the largest rank; set it to actor.lora_rank, {config.actor.lora_rank}, or more"
        )
    staleness = config.rollout.max_head_offpolicyness
    if options.max_loaded_loras < (needed := versions_in_use(staleness)):
        problems.append(
            f"sglang.max_loaded_loras: found {options.max_loaded_loras} with rollout.max_head_offpolicyness "
            f"{staleness}; a request keeps the adapter that it started with, so up to {needed} versions are in use; "
            f"allowed is {needed} or more; raise it, or lower the staleness"
        )
    return problems
