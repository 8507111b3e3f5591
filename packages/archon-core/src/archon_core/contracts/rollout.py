"""Rollout: sampling options, requests and completions, and inference engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from archon_core.config.rules import NOT_NEGATIVE, POSITIVE, number, one_of, option
from archon_core.contracts.scheduling import SchedulingSpec, SchedulingStrategy
from archon_core.contracts.spec import Spec

if TYPE_CHECKING:
    from pathlib import Path

    from archon_core.contracts.decisions import Decision
    from archon_core.contracts.engine import TrainEngine
    from archon_core.ranks.ranks import Ranks
    from archon_core.serving.discovery import Discovery


def _token_ids(value: Sequence[int]) -> str | None:
    return None if all(token >= 0 for token in value) else "token ids of 0 or more"


_SECONDS = number(above=0)


def _stop_texts(value: Sequence[str]) -> str | None:
    return None if all(value) else "lists of texts with at least one character each"


@dataclass
class RolloutConfig:
    """The inference engine that generates completions.

    Attributes:
        backend: inference engine and its sizes, such as ``local`` or ``sglang:d4t2``.
        max_batch_size: maximum number of sequences that the local engine decodes together.
        return_routed_experts: record the experts of every token in completions; ``actor.archon.moe_routing_replay``
            needs it.
        addresses: ``host:port`` of running servers to use; empty to start them.
        start_servers: start the ``d`` servers of ``backend``. With false, or with ``addresses``, the run starts none
            and uses ``addresses`` and the servers that ``cluster.name_resolve`` lists.
        setup_timeout: seconds to wait for servers: until they are ready, and until ``min_servers`` are in service.
        request_timeout: seconds for one request, all its attempts included.
        request_retries: attempts after the first one, each on the server with the least work.
        min_servers: least number of servers in service. With fewer, the run waits for ``setup_timeout`` and then ends
            with an error that lists the servers that left.
        enable_health_monitor: probe every server with a request for one token.
        health_check_interval_seconds: time between two rounds of probes.
        health_check_timeout_seconds: time limit of a probe.
        health_check_failure_threshold: consecutive failed probes after which a server leaves service.
        enable_topology_discovery: let servers join after the start.
        topology_change_cooldown_seconds: time after a server joined or left during which no server joins.
        weight_transport: how servers get weights: ``shm`` on the trainer's host, ``distributed`` over the network,
            ``disk`` through the run folder, ``ipc`` in the memory of a GPU that trainer and servers share; null for the
            first that the kind of server supports where the servers are. See docs/weights.md.
        weight_group: backend of ``distributed``: ``gloo`` sends to each server over the CPU, in parallel; ``nccl``
            broadcasts from the trainer's GPU to the GPUs of all servers.
        weight_bucket_mb: size in MiB of the buckets in which weights are gathered and sent; a larger tensor is sent
            alone. The trainer's first rank holds two.
        weight_timeout: time limit in seconds of each call of a publication to a server.
        weight_canary: after each publication, compare log-probabilities of a fixed prompt with the trainer's.
        max_head_offpolicyness: largest number of training steps between the weights that sample a token and the step
            that consumes it. Above 0, servers sample for later steps while one trains; 0 is synchronous.
        max_concurrent_rollouts: largest number of prompts that servers sample at a time; null for ``data.batch_size``.
        queue_size: largest number of prompts that are sampled or wait for their step; null for 16 times
            ``max_concurrent_rollouts``.
        consumer_batch_size: number of prompts that a step consumes; null, or ``data.batch_size``.
        interruption: what requests do when servers switch to new weights: ``keep`` goes on with the new weights;
            ``abort`` ends them, and the client continues what they have as new requests. Tokens carry their versions.
        pause_grace_period: seconds between the end of the requests and the switch, with ``interruption=abort``.
        check_trajectory_format: check every token of the trajectories of workflows: log-probabilities, versions, loss
            mask, metadata. Their lengths and rewards are always checked.
        dump_to_file: write the trajectories of every step to ``trajectories/`` in the run folder, for
            ``archon trajectories``.
        enable_rollout_tracing: log every request of workflows: its group, lengths, versions, duration.
        newcomer_weights: how servers that join get their weights: with the next ``publication``, or at once from
            ``disk``, from a folder of the current version below the run folder. ``weight_transport=disk`` writes that
            folder anyway; for other transports, the first rank writes it beside each publication. null for ``disk``
            if ``weight_transport`` is ``disk``, else ``publication``.
        skip_unchanged: do not send tensors that have not changed since the last publication, such as frozen ones.
        use_lora: send adapters (``actor.use_lora``) apart: the weights that they adapt go to a server once, and every
            version brings adapters alone. Otherwise each version is the merged weights.
        scheduling_spec: what the processes of servers get; null for nothing special.
        scheduling_strategy: whether servers have devices of their own; null for yes.
    """

    backend: str = "local"
    max_batch_size: int = option(256, POSITIVE)
    return_routed_experts: bool = False
    addresses: list[str] = field(default_factory=list)
    start_servers: bool = True
    setup_timeout: float = option(300.0, _SECONDS)
    request_timeout: float = option(3600.0, _SECONDS)
    request_retries: int = option(3, NOT_NEGATIVE)
    min_servers: int = option(1, POSITIVE)
    enable_health_monitor: bool = True
    health_check_interval_seconds: float = option(5.0, _SECONDS)
    health_check_timeout_seconds: float = option(10.0, _SECONDS)
    health_check_failure_threshold: int = option(3, POSITIVE)
    enable_topology_discovery: bool = True
    topology_change_cooldown_seconds: float = option(30.0, number(least=0))
    weight_transport: str | None = None
    weight_group: str = option("gloo", one_of("gloo", "nccl"))
    weight_bucket_mb: int = option(256, POSITIVE)
    weight_timeout: float = option(120.0, POSITIVE)
    weight_canary: bool = True
    max_head_offpolicyness: int = option(0, NOT_NEGATIVE)
    max_concurrent_rollouts: int | None = option(None, POSITIVE)
    queue_size: int | None = option(None, POSITIVE)
    consumer_batch_size: int | None = option(None, POSITIVE)
    interruption: str = option("keep", one_of("keep", "abort"))
    pause_grace_period: float = option(0.0, number(least=0))
    check_trajectory_format: bool = False
    dump_to_file: bool = False
    enable_rollout_tracing: bool = False
    newcomer_weights: str | None = option(None, one_of("publication", "disk"))
    skip_unchanged: bool = False
    use_lora: bool = False
    scheduling_spec: SchedulingSpec | None = None
    scheduling_strategy: SchedulingStrategy | None = None

    @property
    def starts_servers(self) -> bool:
        """Whether a run on servers starts them itself."""
        return self.start_servers and not self.addresses


@dataclass(frozen=True)
class InferenceEngineSpec(Spec):
    """A rollout engine. ``target`` names an ``InferenceEngineFactory``.

    Attributes:
        letters: axis letters that the backend understands; ``d`` is the number of servers. Empty for an engine that
            runs on the trainer's own ranks and takes no sizes.
        runs_servers: whether the engine runs the servers of any ``ServerDriver``. The name of every installed driver is
            then a name of the engine too; see ``archon_core.plugins.inference_engines``.
        scorer: target of a ``ScoringEngineFactory``, for an engine whose servers can also score with frozen weights, as
            a teacher's do. Empty if they cannot.
    """

    kind: ClassVar[str] = "inference_engine"
    hook: ClassVar[str] = "archon_inference_engines"

    letters: str = "d"
    runs_servers: bool = False
    scorer: str = ""


class InferenceEngine(Protocol):
    """Samples completions, each with the version of the weights that produced it."""

    @property
    def version(self) -> int:
        """The version of the weights in use."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """Return the ``n_samples`` completions of each request, in order."""

    def health(self) -> bool:
        """Whether the engine can answer requests."""

    def pause(self) -> None:
        """Stop accepting requests."""

    def resume(self) -> None:
        """Accept requests again."""

    def update_weights(self, version: int) -> Mapping[str, float]:
        """Switch to the trainer's weights, which have ``version``. Returns metrics of the publication, if there was
        one."""

    def close(self) -> None:
        """Free the engine's resources."""


class InferenceEngineFactory(Protocol):
    """``target`` of an ``InferenceEngineSpec``.

    ``trainer`` is the engine that provides the weights. Engines with sizes, which have servers, also get ``folder``,
    for the servers' logs; ``options``, the section of ``rollout.backend``, such as ``vllm``, or ``None`` without one;
    ``discovery``, where other servers of the run are listed, or ``None`` for nowhere; and ``stop``, which returns
    whether the user has asked the run to stop. An engine that waits for servers then raises KeyboardInterrupt on every
    rank.
    """

    def __call__(
        self,
        config: Any,
        *,
        trainer: TrainEngine,
        folder: Path | None = None,
        options: Any = None,
        discovery: Discovery | None = None,
        stop: Callable[[], bool] = ...,
    ) -> InferenceEngine: ...


class ScoringEngine(Protocol):
    """Computes log-probabilities of given tokens with the frozen weights of a checkpoint, on servers."""

    @property
    def decisions(self) -> Sequence[Decision]:
        """What could not be checked about the servers; the same on every rank."""

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of the tokens of every sequence, except its first token, given those before them.

        Collective: all ranks pass the same sequences and get the same values.

        Raises:
            ServerError: on every rank, if no server could score them. The message names the servers.
        """

    def close(self) -> None:
        """End the servers that the engine started. Idempotent."""


@dataclass(frozen=True)
class ScoredModel:
    """The frozen model of a ``ScoringEngine``.

    Attributes:
        path: checkpoint folder or hub id.
        vocab_size: smallest vocabulary that the scored sequences need.
        dtype: compute type; ``None`` for the servers' default.
        run_as: name of the model that runs the checkpoint; empty for the one that serves its type.
        max_tokens: largest number of tokens to score in one request, except for a single longer sequence.
        temperature: logits are divided by it.
    """

    path: str
    vocab_size: int
    max_tokens: int
    temperature: float = 1.0
    dtype: str | None = None
    run_as: str = ""


class ScoringEngineFactory(Protocol):
    """``scorer`` of an ``InferenceEngineSpec``.

    ``config`` describes the servers; ``option`` is its name in the configuration, for messages; ``options`` is the
    section named like the kind of server, such as ``vllm``. ``devices_before`` counts the devices of this machine after
    the trainer's that other servers use. ``stop`` is as for ``InferenceEngineFactory``. Collective over ``ranks``.
    """

    def __call__(
        self,
        config: RolloutConfig,
        model: ScoredModel,
        *,
        option: str,
        ranks: Ranks,
        folder: Path,
        options: Any = None,
        devices_before: int = 0,
        stop: Callable[[], bool] = ...,
    ) -> ScoringEngine: ...


@dataclass
class GenerationConfig:
    """Sampling options (``gconfig``).

    Attributes:
        n_samples: completions per prompt; they share the prompt's prefill.
        max_new_tokens: maximum number of generated tokens per completion, including the stop token.
        min_new_tokens: minimum number of tokens before a stop token can be drawn, or a ``stop`` text ends a completion.
        max_tokens: maximum number of tokens of prompt and completion together; null for no limit.
        temperature: divide logits by this. Log-probabilities are those of the tempered distribution.
        frequency_penalty: subtract this from a token's logit, before the temperature, for each time that the completion
            already has the token; from -2 to 2. Training knows no penalty: the ratio to the rollout's
            log-probabilities, which include it, corrects for that.
        top_p: sample from the smallest set of most probable tokens that reaches this probability; 1.0 keeps all.
        top_k: sample from the k most probable tokens; 0 keeps all.
        greedy: always take the most probable token. Log-probabilities are then those at temperature 1.
        stop_token_ids: token ids that end a completion, in addition to the tokenizer's end of text and the model's own
            list.
        stop: texts that end a completion, also across tokens; null for none. The tokens that spell the text stay in the
            completion, are trained on, and rewards see them.
        ignore_eos: do not end completions at the tokenizer's end of text and the model's own list, but only at
            ``stop_token_ids``, ``stop`` and the limits.
    """

    n_samples: int = option(1, POSITIVE)
    max_new_tokens: int = option(512, POSITIVE)
    min_new_tokens: int = option(0, NOT_NEGATIVE)
    max_tokens: int | None = option(None, POSITIVE)
    temperature: float = option(1.0, number(above=0), fix="for the most probable token, set greedy=true")
    frequency_penalty: float = option(0.0, number(least=-2, most=2))
    top_p: float = option(1.0, number(above=0, most=1))
    top_k: int = option(0, NOT_NEGATIVE, fix="0 keeps all tokens")
    greedy: bool = False
    stop_token_ids: list[int] = field(default_factory=list, metadata={"rule": _token_ids, "fix": ""})
    stop: list[str] | None = field(default=None, metadata={"rule": _stop_texts, "fix": ""})
    ignore_eos: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        """Conflicting options."""
        if self.min_new_tokens > self.max_new_tokens:
            yield "min_new_tokens", f"found {self.min_new_tokens}, above max_new_tokens {self.max_new_tokens}; lower it"


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to complete ``config.n_samples`` times.

    Attributes:
        prompt_ids: token ids, at least one.
        seeds: one seed per sample. A completion depends on its prompt, weights, options and seed only,
            never on other requests.
        decode: token ids -> text with special tokens. An engine without a tokenizer finds ``config.stop`` with it.
    """

    prompt_ids: tuple[int, ...]
    config: GenerationConfig
    seeds: tuple[int, ...]
    decode: Callable[[Sequence[int]], str] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Completion:
    """One sampled continuation.

    Attributes:
        token_ids: generated ids, including the stop token or the tokens that spell the stop text.
        logprobs: log-probability of every generated token under the distribution that it was drawn from, before top-p
            and top-k cut it. That is what a trainer computes for the same tokens at the same temperature, unless
            ``frequency_penalty`` changed the logits, or ``min_new_tokens`` excluded stop tokens.
        versions: the weight version that produced each token.
        stop_reason: ``"stop"`` after a stop token or a stop text, ``"length"`` at the limit, ``"abort"`` if a server
            ended the request earlier; the tokens so far are valid.
        routed_experts: int16 tensor [prompt and generated tokens - 1, layers, k], the experts of every token except the
            last, which the model never processes; -1 in layers without experts. Name and shape are those of vLLM and
            SGLang. ``None`` without ``rollout.return_routed_experts``.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    stop_reason: Literal["stop", "length", "abort"]
    routed_experts: Any = field(default=None, compare=False)
