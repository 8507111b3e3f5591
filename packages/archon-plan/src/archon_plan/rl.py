"""Plans an RL run: sampling, training, publication, and how they overlap.

A step trains on ``data.batch_size`` prompts with ``gconfig.n_samples`` completions each. The trainer's ranks run the
forward passes of reference, critic and proximal policy, then the updates, in turn; servers sample meanwhile if
``rollout.max_head_offpolicyness`` is above 0, and otherwise before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from archon_plan.devices import Device
from archon_plan.overlap import Pace, Step, pace, play
from archon_plan.publishing import Transport, publication_seconds
from archon_plan.results import StepTime
from archon_plan.sampling import Fleet, Samples
from archon_plan.server import Server, rates_of
from archon_plan.setting import Setting
from archon_plan.shared_cores import with_threads
from archon_plan.timing import step_time

STALENESS = (0, 1, 2, 4, 8)
"""Bounds of staleness that a plan compares."""


@dataclass(frozen=True)
class Pass:
    """Something that the trainer's ranks do in every step of the run.

    Attributes:
        name: such as ``update of the actor`` or ``reference``.
        setting: of one optimizer step, or of forward passes over as many tokens.
        times: how often a step of the run does it (``ppo_n_minibatches``).
    """

    name: str
    setting: Setting
    times: int = 1


@dataclass(frozen=True)
class RLRun:
    """An RL run.

    Attributes:
        passes: of the trainer; the first one updates the actor.
        samples: of a step.
        server: one of the servers; with ``colocated``, the ranks of the trainer that hold one whole model.
        servers: their number.
        colocated: whether the trainer's ranks sample (``rollout.backend=local``): in turn with training, and without a
            publication.
        staleness: ``rollout.max_head_offpolicyness``.
        concurrent: ``rollout.max_concurrent_rollouts``.
        queue_size: ``rollout.queue_size``.
        transport: of the weights.
        refills: whether servers prefill running sequences again after a publication.
        server_device: of the servers, if not that of the trainer.
        granularity: ``actor.mb_spec.granularity``.
        divisor: ``actor.mb_spec.n_mbs_divisor``.
        strict: ``actor.archon.strict``.
    """

    passes: tuple[Pass, ...]
    samples: Samples
    server: Server
    servers: int
    colocated: bool = False
    staleness: int = 0
    concurrent: int | None = None
    queue_size: int | None = None
    transport: Transport = "gloo"
    refills: bool = True
    server_device: Device | None = None
    granularity: int = 1
    divisor: int = 1
    strict: bool = False

    @property
    def actor(self) -> Setting:
        """The engine that is trained."""
        return self.passes[0].setting

    @property
    def trainer_devices(self) -> int:
        """Devices of the trainer."""
        return self.actor.dims.world_size

    @property
    def server_devices(self) -> int:
        """Devices of the servers alone; 0 if the trainer's ranks sample."""
        return 0 if self.colocated else self.servers * self.server.n_devices

    @property
    def queued(self) -> float:
        """Batches that are sampled or wait for their step: ``queue_size`` over the batch size. Without a value it is
        16 times the concurrent prompts, and at least a batch (docs/async.md)."""
        concurrent = self.concurrent or self.samples.prompts
        size = self.queue_size or max(self.samples.prompts, 16 * concurrent)
        return size / self.samples.prompts


@dataclass(frozen=True)
class RLPlan:
    """Times of an RL run, in seconds per step.

    Attributes:
        run: what was planned.
        fleet: the servers.
        training: pass -> time.
        steps: pass -> how its time is composed.
        publication: time of a publication, or of unsharding the weights where the trainer's ranks sample.
        pace: of the run.
        paces: bound of staleness -> pace, for comparison; only 0 where the trainer's ranks sample.
    """

    run: RLRun
    fleet: Fleet
    training: Mapping[str, float]
    steps: Mapping[str, StepTime]
    publication: float
    pace: Pace
    paces: Mapping[int, Pace] = field(default_factory=dict)

    @property
    def train_seconds(self) -> float:
        """Training on one batch, without publication."""
        return sum(self.training.values())

    @property
    def step_seconds(self) -> float:
        """A step of the run."""
        return self.pace.seconds

    @property
    def limit(self) -> str:
        """What limits the run; see ``limit_at``."""
        return self.limit_at(self.pace)

    def limit_at(self, pace: Pace) -> str:
        """What to make faster: ``training``, ``publication``, ``sampling``, the ``staleness`` bound, for which both
        wait, or ``taking turns`` where the trainer's ranks sample."""
        if self.run.colocated:
            return "taking turns"
        if pace.limit == "training" and self.publication > self.train_seconds:
            return "publication"
        return pace.limit

    @property
    def steps_per_hour(self) -> float:
        """Steps of the run per hour."""
        return 3600 / self.pace.seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens that are trained on, prompts included, per second of the run."""
        return self.run.samples.tokens / self.pace.seconds

    def timeline(self, n_steps: int) -> list[Step]:
        """The first steps of the run."""
        run = self.run
        train, batches = self.train_seconds + self.publication, self.fleet.batches(run.staleness)
        return play(train, batches, run.staleness, run.queued)[:n_steps]


def plan_rl(run: RLRun, device: Device) -> RLPlan:
    """Plan a run whose trainer runs on ``device``.

    Raises:
        ConfigError: the memory of the servers does not hold the weights and one sequence.
    """
    server_device = with_threads(run.server_device or device, run.servers * run.server.n_devices)
    fleet = Fleet(
        run.server,
        rates_of(server_device, run.server.n_devices, run.server.weight_bytes),
        run.servers,
        run.samples,
        concurrent=run.concurrent,
        refills=run.refills and not run.colocated,
    )
    steps = {one.name: step_time(one.setting, device) for one in run.passes}
    training = {one.name: one.times * steps[one.name].total for one in run.passes}
    published = _unsharding(run, device) if run.colocated else _publication(run, device)
    train = sum(training.values()) + published
    staleness = 0 if run.colocated else run.staleness
    bounds = (0,) if run.colocated else sorted({*STALENESS, staleness})
    paces = {bound: pace(train, fleet.batches(bound), bound, run.queued) for bound in bounds}
    return RLPlan(run, fleet, training, steps, published, paces[staleness], paces)


def _publication(run: RLRun, device: Device) -> float:
    return publication_seconds(run.actor, device, transport=run.transport, servers=run.servers)


def _unsharding(run: RLRun, device: Device) -> float:
    """Time to gather the weights that the trainer's ranks sample with: all but the share that each has."""
    dims = run.actor.dims
    shards = dims.dp_shard * dims.cp
    within = dims.stage_size <= device.devices_per_node
    share = device.efficiency
    bandwidth = device.node_bandwidth * share.node if within else device.network_bandwidth * share.network
    return run.server.weights * (shards - 1) / shards / bandwidth
