"""The parts of a server with faults in them, and the server's own log.

They replace ``Service``, ``ServingLoop`` and ``EngineCopies`` in the process of a storm's server. Faults strike at the
calls of an update, between two tokens, and between a transport and the memory that checksums are computed from.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from archon_core.contracts.rollout import Completion, GenerationRequest
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.record import PauseMode
from archon_core.serving.update import BucketNotice, Receipt, UpdatePlan
from archon_rollout.server.commands import Command, Results, Submit
from archon_rollout.server.service import Service
from archon_rollout.server.serving_loop import ServingLoop
from archon_rollout.server.weight_copies import EngineCopies
from weather.digest import digest_of
from weather.faults import Faults


class StormService(Service):
    """Faults around the calls of an update.

    Args:
        faults: of the server.
        withdraw: removes the server's entry from the registry.
        arguments: of ``Service``.
    """

    def __init__(self, faults: Faults, withdraw: Callable[[], None], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._faults, self._withdraw = faults, withdraw
        faults.log.write("started", incarnation=self.record.incarnation, address=self.record.address, pid=os.getpid())

    def end(self) -> int:
        self._withdraw()
        return super().end()

    async def begin_update(self, plan: UpdatePlan) -> None:
        self._faults.signal_self("die before prepare")
        await super().begin_update(plan)

    async def receive_bucket(self, notice: BucketNotice) -> Receipt:
        self._faults.signal_self("die in transfer", "stop in transfer", at=notice.index)
        if "slot" in notice.place and self._faults.take("read the old slot", at=notice.index):
            notice = replace(notice, place={**notice.place, "slot": 1 - notice.place["slot"]})
        return await super().receive_bucket(notice)

    async def verify_update(self, manifest: WeightManifest) -> Receipt:
        receipt = await super().verify_update(manifest)
        self._faults.signal_self("die before commit", at=0)
        return receipt

    async def commit_update(self, version: int) -> None:
        faults = self._faults
        faults.signal_self("die before commit", at=1)
        late = faults.take("commit late")
        if late is not None:
            await asyncio.sleep(late.seconds)
        if faults.take("keep old weights"):
            return
        if faults.take("keep old weights, say new"):
            faults.lying = True
            self._weights.updates.abort(version)
            self._weights.updates._version = version
            faults.log.write("lied", version=version)
            return
        await super().commit_update(version)

    async def pause(self, mode: PauseMode) -> None:
        await super().pause(mode)
        self._faults.log.write("paused", mode=mode)

    async def resume(self) -> None:
        await super().resume()
        self._faults.log.write("resumed")


class StormLoop(ServingLoop):
    """Faults between two tokens, and the log of every completion before it is answered."""

    def __init__(self, faults: Faults, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._faults = faults
        self._requests: dict[int, GenerationRequest] = {}
        self._deceived: set[int] = set()
        self._step_seconds = 0.0
        self._version_shift = 0
        self._n_steps = 0

    def run(self, commands: Iterable[Command]) -> Results:
        commands = list(commands)
        self._requests |= {command.number: command.request for command in commands if isinstance(command, Submit)}
        self._strike()
        self._mark_deceived()
        results = super().run(commands)
        self._mark_deceived()
        for number, completions in results.finished.items():
            shift = self._version_shift
            labelled = [replace(c, versions=tuple(v + shift for v in c.versions)) for c in completions]
            results.finished[number] = labelled
            self._write(number, labelled)
        for number in results.failed:
            self._requests.pop(number, None)
        return results

    def _strike(self) -> None:
        """Faults before a step, counted in steps since requests of more than a probe's token are in progress."""
        faults = self._faults
        if not (self.has_work and any(r.config.max_new_tokens > 1 for r in self._requests.values())):
            self._n_steps = 0
            return
        self._n_steps += 1
        faults.signal_self("die in generation", "stop in generation", "terminate", at=self._n_steps)
        hang = faults.take("hang", at=self._n_steps)
        if hang is not None:
            time.sleep(hang.seconds)
        slow = faults.take("slow")
        if slow is not None:
            self._step_seconds = slow.seconds
        time.sleep(self._step_seconds)

    def _commit(self, version: int) -> None:
        before = self._weights.active
        super()._commit(version)
        if self._weights.active is before:  # a repeated commit changes nothing
            return
        faults, self._version_shift = self._faults, 0
        faults.lying = False
        if faults.take("wrong version in state"):
            faults.lying = True
            self._weights.updates._version += 1
        elif faults.take("wrong version on tokens"):
            faults.lying, self._version_shift = True, -1
        received = self._weights.active.received_weights
        held = {name: received.whole(name, torch.float64) for name in received.shapes}
        faults.log.write("committed", version=version, digest=digest_of(held), lying=faults.lying)

    def _mark_deceived(self) -> None:
        """Remember the requests that are in progress during a lie: their tokens prove nothing."""
        if self._faults.lying:
            self._deceived |= self._requests.keys()

    def _write(self, number: int, completions: Sequence[Completion]) -> None:
        request = self._requests.pop(number)
        for completion in completions:
            self._faults.log.write(
                "tokens",
                prompt_ids=request.prompt_ids,
                token_ids=completion.token_ids,
                logprobs=completion.logprobs,
                versions=completion.versions,
                lying=number in self._deceived,
            )
        self._deceived.discard(number)


class StormCopies(EngineCopies):
    """Faults of memory: what arrived is not what is stored."""

    def __init__(self, faults: Faults, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._faults = faults
        self._held: dict[str, tuple[str, Tensor]] = {}

    def put(self, name: str, values: Tensor) -> None:
        late = self._faults.take("wake after reuse")
        if late is not None:
            time.sleep(late.seconds)
        if self._faults.take("drop a tensor"):
            return
        other = self._partner_of(name)
        if other is not None:
            self._held[other] = name, values.clone()
            return
        first, swapped = self._held.pop(name, (None, None))
        if first is not None:
            super().put(first, values)
        super().put(name, values if swapped is None else swapped)
        if self._faults.take("flip a bit"):
            spoiled = self.stored(name).clone()
            spoiled.view(-1).view(torch.uint8)[0] ^= 1
            super().put(name, spoiled)

    def drop(self) -> None:
        self._held = {}
        super().drop()

    def _partner_of(self, name: str) -> str | None:
        """The later tensor of equal shape with which this one is swapped now, if that fault waits."""
        names = list(self.shapes)
        later = [other for other in names[names.index(name) + 1 :] if self.shapes[other] == self.shapes[name]]
        return later[0] if later and self._faults.take("swap a pair") else None
