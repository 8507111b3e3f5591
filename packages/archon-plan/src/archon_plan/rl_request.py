"""Reads the RL run from a run's configuration: what it samples, on which servers, and what its trainer computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from archon_core.contracts.serving import ServerDriverSpec
from archon_core.layout import Layout
from archon_core.plugins import Registry
from archon_core.plugins.transport_choice import choose_transport
from archon_plan.answer import Answer, EngineAnswer
from archon_plan.constraints import check_engine
from archon_plan.engine_plan import plan_engine
from archon_plan.flops import stage_work
from archon_plan.lengths import Lengths
from archon_plan.parts import EngineRequest, Sequences
from archon_plan.publishing import Transport
from archon_plan.rl import Pass, RLRun
from archon_plan.sampling import Samples
from archon_plan.server import Server
from archon_plan.setting import Setting
from archon_plan.shared_prompts import with_prompts

SPREAD = 0.6
"""Assumed standard deviation of the lengths of completions, over their mean."""

MEMORY_SHARE = 0.88
"""Assumed share of the memory that a server uses if its options leave it to the server."""

RECOMPUTING = ("recompute", "metrics")
"""Values of ``actor.prox_logp_method`` with a forward pass at the start of a step."""


@dataclass(frozen=True)
class Measured:
    """Lengths that a user knows from a run; ``None`` for one to assume.

    Attributes:
        prompt_tokens: mean length of a prompt.
        completion_tokens: mean length of a completion.
        spread: standard deviation of the lengths of completions over their mean.
    """

    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    spread: float | None = None


@dataclass(frozen=True)
class RLRequest:
    """An RL run with the assumptions about it."""

    run: RLRun
    notes: tuple[str, ...]


def request_rl(answer: Answer, registry: Registry, measured: Measured | None = None) -> RLRequest | None:
    """The RL run of an answer; ``None`` if its run samples nothing, or if it has no configuration.

    Args:
        answer: of a run's file.
        registry: the installed plugins.
        measured: lengths to take in place of assumptions.

    Raises:
        ConfigError: lengths are impossible, or servers cannot receive weights by the transport.
    """
    rollout, config = answer.request.rollout, answer.request.config
    if rollout is None or config is None:
        return None
    return _Reader(answer, config, rollout, registry, measured or Measured()).request()


class _Reader:
    def __init__(self, answer: Answer, config: Any, rollout: Layout, registry: Registry, measured: Measured) -> None:
        self._answer, self._config, self._rollout, self._registry = answer, config, rollout, registry
        self._engines = {engine.plan.role: engine for engine in answer.engines}
        self._notes: list[str] = []
        self._samples = self._read_samples(measured)

    def request(self) -> RLRequest:
        config, rollout = self._config, self._rollout
        passes = tuple(self._passes())
        colocated = rollout.on_trainer_ranks
        actor, options = passes[0].setting, self._engines["actor"].plan.request.config
        run = RLRun(
            passes=passes,
            samples=self._samples,
            server=self._server(actor),
            servers=actor.dims.dp_replicate * actor.dims.dp_shard if colocated else rollout.servers,
            colocated=colocated,
            staleness=config.rollout.max_head_offpolicyness,
            concurrent=config.rollout.max_concurrent_rollouts,
            queue_size=config.rollout.queue_size,
            transport="gloo" if colocated else self._transport(),
            granularity=options.mb_spec.granularity,
            divisor=options.mb_spec.n_mbs_divisor,
            strict=options.archon.strict,
        )
        return RLRequest(run, tuple(dict.fromkeys(self._notes)))

    def _read_samples(self, measured: Measured) -> Samples:
        config, generation = self._config, self._config.gconfig
        prompt, completion, spread = measured.prompt_tokens, measured.completion_tokens, measured.spread
        if prompt is None:
            longest = config.data.max_length or max((generation.max_tokens or 0) - generation.max_new_tokens, 0) or 1024
            prompt = longest / 2
            self._notes.append(f"prompts of {prompt:,.0f} tokens are assumed, half of the longest")
        if completion is None:
            completion = generation.max_new_tokens / 2
            self._notes.append(f"completions of {completion:,.0f} tokens are assumed, half of gconfig.max_new_tokens")
        if spread is None:
            spread = SPREAD
            self._notes.append(f"lengths of completions vary by {spread:.0%} of their mean (assumed, log-normal)")
        if getattr(config.actor, "dynamic_sampling", False):
            self._notes.append("actor.dynamic_sampling: prompts that are sampled and left out are not counted")
        lengths = Lengths(completion, spread, generation.max_new_tokens)
        return Samples(config.data.batch_size, generation.n_samples, prompt, lengths)

    def _passes(self) -> Iterator[Pass]:
        engines = self._engines
        actor, options = engines["actor"], self._config.actor
        yield self._update("update of the actor", actor, options.ppo_n_minibatches)
        if "critic" in engines:
            yield self._update("update of the critic", engines["critic"], self._config.critic.ppo_n_minibatches)
            yield self._forward("values of the critic", engines["critic"])
        decoupled = options.use_decoupled_loss
        if options.prox_logp_method in RECOMPUTING if decoupled else options.recompute_logprob:
            yield self._forward("log-probabilities of the actor", actor)
        for role, name in (("ref", "reference"), ("teacher", "teacher")):
            if role in engines:
                yield self._forward(name, engines[role])

    def _update(self, name: str, engine: EngineAnswer, times: int) -> Pass:
        return Pass(name, self._setting(engine.plan.request, -(-self._samples.sequences // times)), times)

    def _forward(self, name: str, engine: EngineAnswer) -> Pass:
        request = engine.plan.request
        config = replace(request.config, optimizer=None, gradient_checkpointing=False)
        return Pass(name, self._setting(replace(request, config=config), self._samples.sequences))

    def _setting(self, request: EngineRequest, number: int) -> Setting:
        """The setting for ``number`` sequences of mean length; that of an answer has the longest ones."""
        samples = self._samples
        length = max(1, round(samples.prompt_tokens + samples.lengths.mean))
        sequences = Sequences(number, length, samples.lengths.mean / length)
        if request.config.enable_tree_training:
            sequences = with_prompts(sequences, samples.prompts, samples.n_samples, round(samples.prompt_tokens))
        mean = replace(request, sequences=sequences)
        return plan_engine(mean, check_engine(mean, self._registry)).setting

    def _server(self, actor: Setting) -> Server:
        rollout, config = self._rollout, self._config
        launches = sum(
            count * passes.forward.operations
            for stage in actor.stage_plan.stages
            for count, passes in stage_work(actor, stage)
        )
        number = actor.types.compute
        own = Server(actor.anatomy, weight_bytes=number, cache_bytes=number, launches=launches, memory_share=1.0)
        own = replace(own, max_sequences=config.rollout.max_batch_size)
        if rollout.on_trainer_ranks:
            kept = self._answer.engines[0].resident
            return replace(own, tensor=actor.dims.tp, pipeline=actor.dims.pp, reserved=kept)
        sizes = {"tensor": rollout.dims["t"], "pipeline": rollout.dims["p"]}
        if rollout.backend == "served":
            own = replace(own, **sizes)
            return replace(own, reserved=own.weights)  # new weights arrive beside the old ones
        section = getattr(config, rollout.backend, None)
        share = getattr(section, "mem_fraction_static", None) or getattr(section, "gpu_memory_utilization", None)
        if share is None:
            share = MEMORY_SHARE
            self._notes.append(f"servers use {share:.0%} of the memory of a device (assumed)")
        most = getattr(section, "max_running_requests", None) or getattr(section, "max_num_seqs", None)
        # These servers replay CUDA graphs, so the host does not limit them.
        return replace(own, **sizes, max_sequences=most, memory_share=share, launches=0.0)

    def _transport(self) -> Transport:
        config, rollout = self._config, self._rollout
        driver = self._registry.get(ServerDriverSpec, rollout.backend)
        ranks = self._answer.engines[0].plan.setting.dims.world_size + rollout.world_size
        on_one = ranks <= self._answer.device.devices_per_node
        name, _ = choose_transport(
            config.rollout.weight_transport, rollout, driver, self._registry, elsewhere=not on_one
        )
        if name == "disk":
            speed = self._answer.device.disk_bandwidth
            self._notes.append(f"weights go through a disk of {speed / 1e9:g} GB/s (--set disk_bandwidth=...)")
        if name == "distributed":
            return "nccl" if config.rollout.weight_group == "nccl" else "gloo"
        if name not in ("shm", "ipc", "disk"):
            self._notes.append(f"the transport {name} is planned as gloo")
            return "gloo"
        return name  # type: ignore[return-value]
