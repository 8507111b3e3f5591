"""Servers and a collector in the trainer's process: stand-ins for ``archon-rollout`` and for the collector's process.

The collector runs in a thread, with the real service, sampler, rewards and messages over a socket. It can be killed at
any message.
"""

from __future__ import annotations

import asyncio
import copy
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bigram_engine import BigramRollout

from archon_core.contracts.serving import ClientRecipe
from archon_core.serving.record import ServerRecord
from archon_rl.collector import process
from archon_rl.collector.messages import packed, receive
from archon_rl.trainer.collector_link import CollectorLink, CollectorLostError

SERVERS = (ServerRecord("one:1", "one", "bigram"), ServerRecord("two:1", "two", "bigram"))


class BigramServing(BigramRollout):
    """A ``contracts.serving.ServingEngine``. Its servers hold a copy of the table, as published last.

    Attributes:
        outages: numbers of calls of ``needs_publication`` from which on the servers are dead until a publication.
    """

    current: BigramServing
    outages: tuple[int, ...] = ()

    def __init__(self, config, *, trainer, folder, options=None, discovery=None, stop=None):
        super().__init__(config, trainer=trainer)
        self.decisions, self.is_dead, self.n_looks, self.n_published = [], False, 0, 0
        self.reported = {}
        self._call = None
        self.served = None
        if trainer.data_ranks.everyone.is_first:
            BigramServing.current = self

    def update_weights(self, version):
        if self.trainer.data_ranks.everyone.is_first:
            if self._call is not None:
                self._call()
            self.served = Served(copy.deepcopy(self.trainer.table.detach()), version)
            self.is_dead = False
            self.n_published += 1
        return super().update_weights(version)

    def client_recipe(self):
        return ClientRecipe("bigram_serving:BigramClient", {})

    def on_switch(self, call):
        self._call = call

    def servers(self):
        return [] if self.is_dead else list(SERVERS)

    def answering(self):
        return [server.incarnation for server in self.servers()]

    def report_failures(self, failures):
        self.reported |= failures

    def needs_publication(self):
        self.n_looks += 1
        if self.n_looks in self.outages:
            self.is_dead = True
        return self.is_dead


@dataclass
class Served:
    """What servers hold."""

    table: object
    version: int


class BigramClient:
    """A ``RemoteClient`` of the current ``BigramServing``; a completion may cross publications."""

    def __init__(self, data):
        self.servers, self.version, self.is_switching = [], 0, False

    def update(self, servers, version, answering=()):
        self.servers, self.version, self.is_switching = list(servers), version, False

    def switching(self):
        self.is_switching = True

    def failures(self):
        return {}

    def idle_share(self):
        return 0.0

    async def generate(self, request, *, group=""):
        while not self.servers or self.is_switching:
            await asyncio.sleep(0.001)
        served = BigramServing.current.served
        sampler = BigramRollout(None, trainer=Sampled(served.table))
        sampler.version = served.version
        completions = [sampler._complete(request, seed) for seed in request.seeds]
        await asyncio.sleep(0.001 * (hash(group) % 4))
        while self.is_switching:
            await asyncio.sleep(0.001)
        return completions


@dataclass
class Sampled:
    table: object


@dataclass
class Faults:
    """When collectors die.

    Attributes:
        lost_before: numbers of messages, counted over all collectors, which a collector does not live to get.
        lost_after: numbers of messages whose answer the trainer does not get.
        only: count messages of this name alone; empty for all.
        n_messages: messages so far.
        n_collectors: collectors so far.
    """

    lost_before: tuple[int, ...] = ()
    lost_after: tuple[int, ...] = ()
    only: str = ""
    n_messages: int = 0
    n_collectors: int = 0
    names: list[str] = field(default_factory=list)


class ThreadLink(CollectorLink):
    """A ``CollectorLink`` whose collector is a thread; ``setup`` is that of the last one."""

    faults = Faults()
    setup: Mapping[str, Any]

    def __init__(self, setup, log):
        ThreadLink.setup = setup
        self._channel, theirs = socket.socketpair()
        self._process = CollectorThread(theirs)
        self.faults.n_collectors += 1
        try:
            self._send(dict(setup), 60.0)
        except BaseException:
            self.close()
            raise

    def _exchange(self, message, timeout):
        faults = self.faults
        name = message.get("call", "setup")
        faults.names.append(name)
        counts = faults.only in ("", name)
        faults.n_messages += counts
        number = faults.n_messages if counts else 0
        if number in faults.lost_before:
            self._process.kill()
        answer = super()._exchange(message, timeout)
        if number in faults.lost_after:
            self._process.kill()
            raise CollectorLostError("killed by the test")
        return answer


class CollectorThread:
    """The part of ``subprocess.Popen`` that a link uses; what the thread runs is what the process runs."""

    def __init__(self, channel):
        self._channel, self._loop, self._task, self._has_failed = channel, None, None, False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        rewards = None
        try:
            setup = receive(self._channel)
            sampler, rewards = process._build(setup)
        except EOFError:
            return
        except Exception as error:
            self._channel.sendall(packed(process.error_data(error)))
            self._has_failed = True
            self._channel.close()  # as the end of a process does
            return
        try:
            self._channel.sendall(packed({"ok": None}))
            asyncio.run(self._serve(setup, sampler))
        except (asyncio.CancelledError, OSError):
            pass
        finally:
            self._channel.close()
            if rewards is not None:
                rewards.close()

    async def _serve(self, setup, sampler):
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        await process._serve(self._channel, setup, sampler)

    def kill(self):
        """As SIGKILL does: nothing is answered any more."""
        if self._task is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
        else:
            self._channel.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def poll(self):
        return None if self._thread.is_alive() and not self._has_failed else -9

    def wait(self, timeout=None):
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the collector does not end"
