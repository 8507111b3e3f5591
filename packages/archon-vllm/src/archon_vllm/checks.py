"""Problems of vLLM servers that can be found before a run."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from archon_core.contracts.serving import ServerCheck
from archon_core.layout import Layout
from archon_core.serving.adapter_versions import versions_in_use
from archon_core.serving.program_checks import missing_program, score_temperature_problems
from archon_vllm.adapters import loads_adapters
from archon_vllm.experts import FIX, config_has_experts, folder_has_experts
from archon_vllm.options import VllmOptions

INSTALL = (
    "python -m venv vllm-env && vllm-env/bin/pip install vllm archon-vllm, then set vllm.python=vllm-env/bin/python"
)


def check_run(config: Any, *, layout: Layout, option: str = "rollout") -> ServerCheck:
    """The problems of a run whose servers in the section ``option`` are vLLM's.

    Args:
        config: the whole configuration.
        layout: of the servers.
        option: their section. Servers in other sections than ``rollout`` score, and do not sample.
    """
    options: VllmOptions = getattr(config, "vllm", None) or VllmOptions()
    missing = (
        missing_program("vllm", options.python, install=INSTALL, option=option)
        if attrgetter(option)(config).starts_servers
        else ""
    )
    problems = (
        _problems(config, options)
        if option == "rollout"
        else score_temperature_problems("vLLM", config.gconfig, layout, option)
    )
    return ServerCheck(tuple(problems), "vllm" if missing else "", missing)


def _problems(config: Any, options: VllmOptions) -> Iterator[str]:
    if not options.allow_experts and (where := _place_of_experts(config.actor)):
        yield f"rollout.backend: found vllm with a mixture of experts ({where}); {FIX}"
    yield from _adapter_problems(config, options)
    for section in ("gconfig", "eval_gconfig"):
        sampling = getattr(config, section)
        if sampling is not None and not sampling.greedy and (sampling.top_p < 1 or sampling.top_k > 0):
            yield (
                f"{section}: found top_p {sampling.top_p:g} and top_k {sampling.top_k}; allowed with vLLM are 1 and 0, "
                "because it returns log-probabilities of the distribution after the cut; use rollout.backend=served, "
                "or remove them"
            )


def _adapter_problems(config: Any, options: VllmOptions) -> Iterator[str]:
    """Adapters that are loaded apart need room in the server."""
    trains = getattr(config.actor, "use_lora", False)  # an option of archon-lora
    if not (trains and loads_adapters(config.rollout, config.rollout.weight_transport)):
        return
    reason = "rollout.use_lora loads adapters apart, and a request keeps the one that it started with"
    if not options.enable_lora:
        yield f"vllm.enable_lora: found false; {reason}; set it to true"
    if options.max_lora_rank < config.actor.lora_rank:
        yield (
            f"vllm.max_lora_rank: found {options.max_lora_rank} with actor.lora_rank {config.actor.lora_rank}; allowed "
            "is a rank from it that vLLM knows; raise it"
        )
    staleness = config.rollout.max_head_offpolicyness
    if options.max_loras < (needed := versions_in_use(staleness)):
        yield (
            f"vllm.max_loras: found {options.max_loras} with rollout.max_head_offpolicyness {staleness}; {reason}, so "
            f"up to {needed} versions are in use; allowed is {needed} or more; raise it, or lower the staleness"
        )


def _place_of_experts(actor: Any) -> str:
    """The option that names a mixture of experts; empty if the configuration does not show one."""
    if actor.model_config is not None:
        return "actor.model_config" if config_has_experts(actor.model_config) else ""
    return f"actor.path={actor.path}" if actor.path and folder_has_experts(actor.path) else ""
