"""Runs steps of real engines in a world of ranks, and returns what they are in terms of archon-plan and what they sent.

Functions here run on the ranks of ``run_world``.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.contracts.loss import LossSums, OutputRequest
from archon_core.contracts.spec import load_target
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_plan.setting import Setting, Tokens, Types
from archon_testing.compiling import compile_without_code

sys.path.insert(0, str(Path(__file__).parent))

from wire_counter import Sent, WireCounter

BYTES = {"float32": 4, "float64": 8, "bfloat16": 2}


@dataclass(frozen=True)
class Case:
    """A step of an engine.

    Attributes:
        layout: of the engine.
        model: name of a registered model, whose tiny configuration is used.
        n_mbs: micro-batches of each data rank.
        tokens: of a micro-batch.
        sequences: sequences of a micro-batch.
        dtype: of computation.
        changes: to the model's configuration.
        options: ``archon`` options.
        entropy: whether the loss asks for entropies.
        critic: whether the model is a critic.
        trains: whether it is a training step, and not forward passes alone.
        optimizer: of the training step.
    """

    layout: str
    model: str = "qwen3"
    n_mbs: int = 2
    tokens: int = 56
    sequences: int = 1
    dtype: str = "float32"
    changes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    entropy: bool = False
    critic: bool = False
    trains: bool = True
    optimizer: str = "adamw"

    @property
    def n_ranks(self) -> int:
        """Ranks of its world."""
        return parse_layout(f"archon:{self.layout}").world_size


@dataclass(frozen=True)
class Counted:
    """What one rank did in a step.

    Attributes:
        setting: the engine.
        sent: all operations.
    """

    setting: Setting
    sent: tuple[Sent, ...]


def run_cases(cases: list[Case]) -> Iterator[Counted]:
    """Count one step of each case on this rank; yielded one by one, so that a world's time limit is that of a case."""
    _balance_routers()
    for case in cases:
        yield _run(case)


def _run(case: Case) -> Counted:
    engine = _engine(case)
    setting = _setting(case, engine)
    batch, loss = _batch(case, engine), _Loss(case)
    counter = WireCounter()
    with _named_exchanges(counter), counter:
        if case.trains:
            engine.train_batch(batch, loss)
        else:
            engine.forward_batch(batch, loss.request)
    engine.close()
    return Counted(setting, tuple(counter.sent))


def _engine(case: Case) -> Any:
    tiny = load_target(registry().get("model", case.model).tiny_config)()
    archon = ArchonOptions(enable_compile=case.options.get("enable_compile", False))
    for name, value in case.options.items():  # those of the package of experts among them
        setattr(archon, name, value)
    config = ArchonEngineConfig(
        model_config={**tiny, "initializer_range": 0.3, **case.changes},
        dtype=case.dtype,
        is_critic=case.critic,
        gradient_checkpointing="ac_mode" in case.options,
        mb_spec=MicroBatchSpec(n_mbs=case.n_mbs),
        optimizer=OptimizerConfig(type=case.optimizer, lr=1e-2) if case.trains else None,
        archon=archon,
    )
    engine = assemble(
        config,
        role="actor",
        layout=parse_layout(f"archon:{case.layout}"),
        seed=5,
        total_steps=None,
        explicit=frozenset(f"actor.archon.{name}" for name in case.options),
    )
    engine.initialize()
    return engine


def _setting(case: Case, engine: Any) -> Setting:
    """The setting of a running engine, from its own options in effect, stages and lists."""
    tiny = load_target(registry().get("model", case.model).tiny_config)()
    effective, assembled = engine.effective, engine._running.assembled
    parts, dims = assembled.pipeline, assembled.plan.dims
    actions = () if parts is None else parts.schedule.load()(dims.pp, len(parts.plan), case.n_mbs)
    read = registry().get("model", case.model).load_part("anatomy")
    options = dict(case.options)
    has_loss = options.get("moe_aux_loss_coef", 1e-3) > 0
    return Setting(
        anatomy=read({**tiny, **case.changes}, critic=case.critic),
        dims=dims,
        tokens=Tokens(case.tokens, case.n_mbs, sequence=case.tokens // case.sequences),
        types=Types(
            BYTES[effective.compute_dtype],
            BYTES[effective.master_dtype],
            BYTES[effective.reduce_dtype],
        ),
        stages=None if parts is None else parts.plan,
        schedule=None if parts is None else parts.schedule,
        actions=actions,
        checkpointing=effective.ac_mode,
        every=effective.ac_every,
        optimizer=case.optimizer,
        reshards=effective.reshard_after_forward,
        reshards_last=effective.reshard_last,
        reduces_each=effective.reduce_each_micro_batch,
        compiles=effective.compile,
        trains=case.trains,
        entropy=case.entropy,
        aux_loss=options.get("moe_aux_loss", "none") if has_loss else "none",
        z_loss=options.get("moe_z_loss_coef", 0.0) > 0,
        cp_style=options.get("cp_style", "auto"),
    )


def _batch(case: Case, engine: Any) -> Batch:
    """Micro-batches of equal length for every data rank."""
    length, rest = divmod(case.tokens, case.sequences)
    assert not rest, "sequences of a micro-batch have equal lengths"
    ranks = engine.data_ranks
    generator = torch.Generator().manual_seed(ranks.rank)
    n = case.n_mbs * case.sequences
    return Batch.from_sequences([torch.randint(0, 128, (length,), generator=generator) for _ in range(n)])


class _Loss:
    """Mean of every output that the case asks for."""

    def __init__(self, case: Case) -> None:
        names = ("values",) if case.critic else ("logprobs", "entropy") if case.entropy else ("logprobs",)
        self.request = OutputRequest(names)

    def weights(self, batch: Batch) -> Mapping[str, float]:
        return {"token": float(batch.n_tokens)}

    def __call__(self, outputs: Mapping[str, torch.Tensor], micro_batch: Batch) -> LossSums:
        return LossSums({"token": sum(output.sum() for output in outputs.values())})


def _balance_routers() -> None:
    """Route token i to the i-th of all sets of experts, so that every set is chosen equally often."""
    from archon_moe import router

    def choose(scores: torch.Tensor, settings: Any, bias: Any = None) -> torch.Tensor:
        sets = torch.tensor(list(combinations(range(settings.n_experts), settings.top_k)))
        assert scores.shape[0] % len(sets) == 0, f"{scores.shape[0]} tokens for {len(sets)} sets of experts"
        return sets.repeat(scores.shape[0] // len(sets), 1)

    router.choose_experts = choose


@contextmanager
def _named_exchanges(counter: WireCounter) -> Iterator[None]:
    """Name exchanges of Python values by the function of the engine that wants them."""
    functions = {name: getattr(dist, name) for name in ("all_gather_object", "broadcast_object_list")}

    def named(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with counter.named(_caller()):
                return function(*args, **kwargs)

        return call

    for name, function in functions.items():
        setattr(dist, name, named(function))
    try:
        yield
    finally:
        for name, function in functions.items():
            setattr(dist, name, function)


def _caller() -> str:
    frame: Any = sys._getframe(2)
    while frame.f_globals["__name__"] == "archon_core.ranks.ranks":
        frame = frame.f_back
    return f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"


def exchanges(sent: tuple[Sent, ...]) -> Counter[str]:
    """Exchanges of Python values by name; each consists of an exchange of sizes and one of values."""
    operations = Counter(one.inside for one in sent if one.inside)
    assert all(count % 2 == 0 for count in operations.values()), operations
    return Counter({name: count // 2 for name, count in operations.items()})


def run_compiled(case: Case) -> tuple[Setting, Counter[str]]:
    """The functional collectives of one step of compiled blocks on this rank: name -> calls.

    By the profiler, because compiled code does not run under a dispatch mode.
    """
    compile_without_code("aot_eager")
    engine = _engine(case)
    batch, loss = _batch(case, engine), _Loss(case)
    engine.train_batch(batch, loss)  # compiles
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        engine.train_batch(batch, loss)
    namespace = "_c10d_functional::"
    names = [event.name.removeprefix(namespace) for event in profiler.events() if event.name.startswith(namespace)]
    return _setting(case, engine), Counter(names)


@dataclass(frozen=True)
class Published:
    """What one rank did in a publication of weights.

    Attributes:
        setting: the engine.
        assembled: bytes of the tensors that this rank assembled.
        sent: all operations.
    """

    setting: Setting
    assembled: int
    sent: tuple[Sent, ...]


def run_publications(cases: list[Case]) -> list[Published]:
    """Count one publication of each case on this rank."""
    return [_publish(case) for case in cases]


def _publish(case: Case) -> Published:
    engine = _engine(case)
    counter = WireCounter()
    assembled = 0
    with _named_exchanges(counter), counter:
        for bucket in engine.weight_buckets(2**14):
            assembled += sum(tensor.numel() * tensor.element_size() for tensor in bucket.tensors.values())
    setting = _setting(case, engine)
    engine.close()
    return Published(setting, assembled, tuple(counter.sent))
