"""The answer of a plan: memory, traffic and time of every engine of a run. Text, JSON and page show the same one."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property

from archon_core.errors import ConfigError
from archon_core.plugins import Registry
from archon_plan.constraints import check_engine
from archon_plan.devices import Device
from archon_plan.engine_plan import EnginePlan, plan_engine
from archon_plan.layouts import nearest_layouts
from archon_plan.memory import rank_memory
from archon_plan.parts import EngineRequest
from archon_plan.request import RunRequest
from archon_plan.results import RankMemory, StepTime, Transfer
from archon_plan.setting import Setting
from archon_plan.timing import step_time
from archon_plan.traffic import transfers
from archon_plan.violations import Check, Violation

RESIDENT = frozenset({"parameters", "optimizer"})
"""Parts of an engine's memory that stay while another engine works."""


@dataclass(frozen=True)
class EngineAnswer:
    """One engine.

    Attributes:
        plan: its setting, and the decisions of a run.
        memory: of the largest rank of each pipeline rank.
        transfers: what its ranks send in one step.
        time: of one step; for a model that is not trained, of one pass.
    """

    plan: EnginePlan
    memory: tuple[RankMemory, ...]
    transfers: tuple[Transfer, ...]
    time: StepTime

    @cached_property
    def fullest(self) -> RankMemory:
        """Memory of the fullest rank."""
        return max(self.memory, key=lambda memory: memory.total)

    @property
    def resident(self) -> float:
        """The most bytes that a rank holds between steps."""
        return max(sum(part.bytes for part in memory.parts if part.name in RESIDENT) for memory in self.memory)


@dataclass(frozen=True)
class Answer:
    """A plan that violates no constraint.

    Attributes:
        request: what the user asked to plan.
        device: what all ranks run on.
        engines: the answers, the actor's first.
    """

    request: RunRequest
    device: Device
    engines: tuple[EngineAnswer, ...]

    def sharing(self, engine: EngineAnswer) -> tuple[EngineAnswer, ...]:
        """The engines on the same ranks, itself included."""
        hosts = self.request.hosts
        host = hosts.get(engine.plan.role, engine.plan.role)
        return tuple(other for other in self.engines if hosts.get(other.plan.role, other.plan.role) == host)

    def peak(self, engine: EngineAnswer) -> float:
        """Memory of the fullest rank while ``engine`` works: its own, and what others on its ranks keep, unless
        ``enable_offload`` moves it to host memory."""
        if getattr(self.request.config, "enable_offload", False):
            others = [other for other in self.sharing(engine) if other.plan.role == "actor"]
        else:
            others = list(self.sharing(engine))
        return engine.fullest.total + sum(other.resident for other in others if other is not engine)

    @property
    def fullest(self) -> EngineAnswer:
        """The engine that needs most memory while it works."""
        return max(self.engines, key=self.peak)

    @property
    def fits(self) -> bool:
        """Whether the memory of the device suffices for every engine."""
        return self.shortfall <= 0

    @property
    def shortfall(self) -> float:
        """Bytes that the fullest rank lacks; negative for what it has left."""
        return self.peak(self.fullest) - self.device.memory


@dataclass(frozen=True)
class Refusal:
    """The violated constraints of one engine.

    Attributes:
        request: the engine.
        violations: all of them.
        nearest: layouts without violations, nearest first.
    """

    request: EngineRequest
    violations: tuple[Violation, ...]
    nearest: tuple[str, ...]


@dataclass(frozen=True)
class Refused:
    """A request that violates constraints.

    Attributes:
        request: what the user asked to plan.
        engines: of which engines, and the layouts that would work.
        problems: further errors of the configuration.
    """

    request: RunRequest
    engines: tuple[Refusal, ...]
    problems: tuple[str, ...] = ()


def answer_engine(request: EngineRequest, check: Check, device: Device, *, bucket: float = 0.0) -> EngineAnswer:
    """The answer for an engine without violations.

    Args:
        request: the engine.
        check: its check.
        device: what its ranks run on.
        bucket: bytes of a bucket in which it publishes weights; 0 if it publishes none.
    """
    plan = plan_engine(on_nodes_of(request, device), check)
    setting = plan.setting
    memory = memory_of(setting, device, bucket=bucket)
    return EngineAnswer(plan, memory, tuple(transfers(setting)), step_time(setting, device))


def on_nodes_of(request: EngineRequest, device: Device) -> EngineRequest:
    """The request with the device's ranks per node, unless it says how many a machine has."""
    return replace(request, ranks_per_node=request.ranks_per_node or device.devices_per_node)


def memory_of(setting: Setting, device: Device, *, bucket: float = 0.0) -> tuple[RankMemory, ...]:
    """Memory of every pipeline rank; ``bucket`` as for ``answer_engine``."""
    published = _published(setting, bucket)
    return tuple(rank_memory(setting, rank, device, publication=published) for rank in range(setting.dims.pp))


def find_answer(request: RunRequest, device: Device, registry: Registry) -> Answer | Refused:
    """The answer, or all violated constraints.

    Raises:
        ConfigError: there is no engine to plan.
    """
    if not request.engines:
        raise ConfigError("\n".join(request.problems) or f"{request.title}: found no engine to plan")
    checks = [(engine, check_engine(engine, registry)) for engine in request.engines]
    wrong = tuple(
        Refusal(engine, check.violations, nearest_layouts(engine, check, registry))
        for engine, check in checks
        if check.violations
    )
    if wrong or request.problems:
        reported = {violation.option for refusal in wrong for violation in refusal.violations}
        others = tuple(text for text in request.problems if re.split(r"[: ]", text, maxsplit=1)[0] not in reported)
        return Refused(request, wrong, others)
    answers = [answer_engine(engine, check, device, bucket=bucket_of(request, engine.role)) for engine, check in checks]
    return Answer(request, device, tuple(answers))


def bucket_of(request: RunRequest, role: str) -> float:
    """Bytes of a bucket in which an engine publishes weights; 0 if it publishes none."""
    if role != "actor" or request.rollout is None or request.rollout.on_trainer_ranks:
        return 0.0
    return float(request.config.rollout.weight_bucket_mb * 2**20)


def _published(setting: Setting, bucket: float) -> float:
    """Bytes of the two buckets that the first rank holds during a publication. A larger tensor is a bucket alone;
    experts are published one by one."""
    if not bucket:
        return 0.0
    ends = (*setting.anatomy.embed, *setting.anatomy.last)
    weights = [weight.size for weight in ends]
    weights += [weight.size for kind in setting.anatomy.kinds for weight in kind.weights if weight.role != "expert"]
    return 2 * max(bucket, setting.types.compute * max(weights))
