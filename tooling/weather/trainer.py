"""A trainer rank of a storm: publishes, samples and trains, and records what it decided and consumed.

Beside the steps, a collector on rank 0 keeps long requests in progress, so that servers generate while they receive
weights, and completions cross updates.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from datetime import timedelta
from typing import Any, TextIO

import torch
import torch.distributed as dist

from archon_core.contracts.engine import TrainEngine
from archon_core.contracts.rollout import GenerationConfig, GenerationRequest
from archon_core.contracts.serving import RolloutClient
from archon_core.errors import ServerError
from weather.records import Log
from weather.storm_engine import StormEngine, TrainerPlace
from weather.surroundings import refuse_memory
from weather.task import LONG_TOKENS, build_trainer, requests_of, row_of, train_on


class Collector(threading.Thread):
    """Keeps two long requests in progress."""

    def __init__(self, client: RolloutClient, log: Log, *, seed: int) -> None:
        super().__init__(name="storm-collector", daemon=True)
        self._client, self._log, self._seed = client, log, seed
        self._ending = threading.Event()

    def run(self) -> None:
        """The thread's body."""
        asyncio.run(self._collect())

    def stop(self) -> None:
        """End after the requests in progress."""
        self._ending.set()
        self.join()

    async def _collect(self) -> None:
        await asyncio.gather(*(self._ask_repeatedly(number) for number in range(2)))

    async def _ask_repeatedly(self, number: int) -> None:
        count = 0
        while not self._ending.is_set():
            seed = self._seed * 100_000 + 50_000 + 2 * count + number
            request = GenerationRequest((4 + seed % 20, 5), GenerationConfig(max_new_tokens=LONG_TOKENS), (seed,))
            start, count = time.monotonic(), count + 1
            try:
                [completion] = await self._client.generate(request, group=f"long {number}")
            except ServerError as error:
                self._log.write("lost", reason=str(error), seconds=time.monotonic() - start)
                await asyncio.sleep(0.05)
                continue
            self._log.write("collected", seconds=time.monotonic() - start, **row_of(request, completion))
            await asyncio.sleep(0.1)


def train_in_storm(rank: int, place: TrainerPlace, sky: socket.socket | None) -> None:
    """Train through the storm. Called in a forked process.

    Args:
        rank: of this process.
        place: see there.
        sky: asks for the next step; rank 0 only.
    """
    options = place.options
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(place.folder / "ranks"), options.ranks),
        rank=rank,
        world_size=options.ranks,
        timeout=timedelta(seconds=options.longest_step),
    )
    log = Log(place.folder / f"trainer-{rank}.jsonl")
    trainer = build_trainer(options, layout=f"archon:d{options.ranks}")
    engine = StormEngine(place, log, trainer=trainer, folder=place.folder / "engine")
    collector = None
    orders = sky.makefile("rw", encoding="utf-8") if sky is not None else None
    try:
        for version in range(options.versions):
            trainer.save(place.folder / "weights" / f"v{version}", "hf")
            if orders is not None:
                _prepare_step(engine, orders, version, place, log)
            trainer.data_ranks.everyone.barrier()
            start = time.monotonic()
            engine.update_weights(version)
            published = time.monotonic()
            _record_topology(engine, version, log)
            if collector is None and rank == 0:
                collector = Collector(engine.client, log, seed=options.seed)
                collector.start()
            rows = _sample(engine, trainer, version, place)
            sampled = time.monotonic()
            log.write("batch", version=version, rows=rows)
            train_on(trainer, rows)
            log.write("step", version=version, publishing=published - start, sampling=sampled - published)
        trainer.save(place.folder / "weights" / f"v{options.versions}", "hf")
        if collector is not None:
            collector.stop()
    finally:
        engine.close()
    log.write("done")
    trainer.data_ranks.everyone.barrier()


def _prepare_step(engine: StormEngine, orders: TextIO, version: int, place: TrainerPlace, log: Log) -> None:
    """Tell the sky which step comes, wait for the servers that it will strike, and carry out the trainer's faults."""
    order = _ask_sky(orders, "prepare", version)
    engine.wait_for_targets(order["targets"], timeout=place.options.settle_seconds)
    for event in _ask_sky(orders, "strike", version)["events"]:
        log.write("struck", event=event["number"])
        if event["kind"] == "full memory":
            if event["injected"]:
                refuse_memory(event["seconds"])
            engine.restart_transport()
        elif event["kind"] == "clock skew":
            engine.clock.skew(event["seconds"])


def _ask_sky(orders: TextIO, kind: str, version: int) -> dict[str, Any]:
    print(json.dumps({"kind": kind, "version": version}), file=orders, flush=True)
    return json.loads(orders.readline())


def _sample(engine: StormEngine, trainer: TrainEngine, version: int, place: TrainerPlace) -> list[dict[str, Any]]:
    """The completions of all ranks, in order, with their advantages."""
    ranks = trainer.data_ranks
    mine = requests_of(version, seed=place.options.seed)[ranks.rank :: ranks.size]
    completions = engine.generate(mine)
    rows = [row_of(one, c) for one, samples in zip(mine, completions, strict=True) for c in samples]
    everything = [row for share in ranks.gather(rows) for row in share]
    rewards = [sum(row["token_ids"]) % 7 / 7 for row in everything]
    mean = sum(rewards) / len(rewards)
    return [{**row, "advantage": reward - mean} for row, reward in zip(everything, rewards, strict=True)]


def _record_topology(engine: StormEngine, version: int, log: Log) -> None:
    decision, publication = engine.topology, engine.last_publication
    log.write(
        "decision",
        version=version,
        epoch=decision.epoch,
        members=list(decision.members),
        evicted=decision.evicted,
        joined=decision.joined,
        reason=decision.reason,
        failed=[[f.server.incarnation, f.phase, f.reason] for f in publication.failed],
        seconds=publication.seconds,
    )
