"""The RL run of an answer, with the divisions of its devices."""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.errors import ConfigError
from archon_core.plugins import Registry
from archon_plan.answer import Answer
from archon_plan.numbers import gib
from archon_plan.results import RankMemory
from archon_plan.rl import RLPlan, plan_rl
from archon_plan.rl_request import Measured, request_rl
from archon_plan.sampling_memory import sampling_memory
from archon_plan.splits import Split, divide_devices


@dataclass(frozen=True)
class PlannedRun:
    """The RL run of an answer.

    Attributes:
        plan: of the run; ``None`` if it samples nothing, or if its servers have too little memory.
        splits: divisions of its devices among trainer and servers, the fastest first.
        notes: assumptions.
        memory: of the fullest device while it samples; ``None`` without ``plan``.
        problem: why its servers cannot sample; empty if they can.
    """

    plan: RLPlan | None = None
    splits: tuple[Split, ...] = ()
    notes: tuple[str, ...] = ()
    memory: RankMemory | None = None
    problem: str = ""


def plan_run(answer: Answer, registry: Registry, measured: Measured | None = None) -> PlannedRun:
    """Plan the run of an answer.

    Args:
        answer: memory, traffic and time of its engines.
        registry: the installed plugins.
        measured: lengths to take in place of assumptions.

    Raises:
        ConfigError: lengths are impossible, or servers cannot receive weights by the transport.
    """
    request = request_rl(answer, registry, measured)
    if request is None:
        return PlannedRun()
    run, device = request.run, answer.device
    try:
        plan = plan_rl(run, device)
    except ConfigError as error:  # the memory of the servers
        return PlannedRun(notes=request.notes, problem=str(error))
    splits: tuple[Split, ...] = ()
    notes = request.notes
    if not run.colocated:
        total = answer.request.n_nodes * answer.request.devices_per_node
        try:
            splits = tuple(divide_devices(run, device, total or run.trainer_devices + run.server_devices))
        except ConfigError as error:  # a trainer that does not fit has an answer, too
            notes = (*notes, str(error))
    memory = sampling_memory(plan, answer)
    problem = ""
    if memory.total > device.memory:
        problem = (
            f"the trainer's ranks while they sample: found {gib(memory.total)}, and {device.name} has "
            f"{gib(device.memory)}; lower rollout.max_batch_size or gconfig.max_new_tokens, or use servers"
        )
    return PlannedRun(plan, splits, notes, memory, problem)
