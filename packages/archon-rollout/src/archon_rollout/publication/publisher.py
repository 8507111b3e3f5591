"""Publishes an engine's weights to servers, in two phases.

1. *prepare*, while servers generate with the old weights: buckets of Hugging Face tensors, one on its way while the
   next is gathered.
2. *verify*: every server computes checksums of what it holds. The sender's success proves nothing about a receiver.
3. *commit*: servers switch, one call each; the state of each server afterwards decides, not the answer of the call.
4. *canary*: every server completes a fixed prompt, and the trainer recomputes the log-probabilities.

A server that fails anywhere gets nothing more of this version, and the caller takes it out of service. Whole old
weights, whole new weights or out of service: no failure leads to anything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from archon_core.contracts.engine import TrainEngine, TrainsAdapters
from archon_core.contracts.rollout import Completion
from archon_core.contracts.serving import ServerDriver
from archon_core.contracts.weight_transport import (
    BucketMemory,
    Outcome,
    WeightBucket,
    WeightTransport,
    stores_whole_versions,
)
from archon_core.errors import ServerError
from archon_core.receiving.checksum import bytes_of, checksum_of
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.record import ServerRecord
from archon_core.serving.update import Receipt, UpdatePlan, notice_of, receipt_problem
from archon_rollout.publication.attempt import Attempt, reconcile_limit, settled_state
from archon_rollout.publication.canary import (
    TOLERANCE,
    Canary,
    ask_server,
    canary_problem,
    trainer_logprobs,
)
from archon_rollout.publication.report import Publication
from archon_rollout.publication.stored import Answers, StoredVersions


@dataclass(frozen=True)
class PublisherOptions:
    """How to publish.

    Attributes:
        bucket_bytes: largest size of a bucket; a larger tensor is a bucket alone.
        dtype: dtype to publish, such as ``bfloat16``; ``None`` for the compute dtype.
        skip_unchanged: do not send tensors whose checksums equal those of the version that all servers have.
        timeout: time limit of a call to a server, in seconds.
        canary: the fixed prompt; ``None`` for no canary.
        interrupts: end running requests before servers switch; otherwise they go on with the new weights.
        grace: seconds between the end of the requests and the switch.
    """

    bucket_bytes: int = 2**28
    dtype: str | None = None
    skip_unchanged: bool = False
    timeout: float = 60.0
    canary: Canary | None = None
    interrupts: bool = False
    grace: float = 0.0


class Publisher:
    """Publishes the weights of one engine. Every process of the engine has one, and calls ``publish`` together.

    Args:
        engine: the engine.
        driver: calls the servers; used by rank 0 only.
        transport: moves the bytes; ``None`` on other ranks.
        options: see there.
        stored: keeps the last version for newcomers; ``None`` to keep none.
    """

    def __init__(
        self,
        engine: TrainEngine,
        driver: ServerDriver | None,
        transport: WeightTransport | None,
        options: PublisherOptions,
        stored: StoredVersions | None = None,
    ) -> None:
        self._engine = engine
        self._ranks = engine.data_ranks.everyone
        assert not self._ranks.is_first or (driver is not None and transport is not None), "rank 0 publishes"
        self._driver = driver
        self._transport = transport
        self._options = options
        self._stored = stored
        self._published: WeightManifest | None = None  # the last version, with checksums

    def publish(self, servers: Sequence[ServerRecord], *, on_commit: Callable[[], None] | None = None) -> Publication:
        """Publish the current weights. Collective; every rank gets the same result.

        Args:
            servers: the servers that take part; only rank 0's count.
            on_commit: called on rank 0 before servers switch. Until this method returns, it is open which of them label
                tokens rightly.

        Raises:
            WeightsError: the engine is a critic.
        """
        if not self._ranks.is_first:
            return self._publish(None, on_commit)
        with Attempt(self._driver, servers, timeout=self._options.timeout) as attempt:
            return self._publish(attempt, on_commit)

    def _publish(self, attempt: Attempt | None, on_commit: Callable[[], None] | None) -> Publication:
        """Publish; only rank 0 has an attempt."""
        manifest = self._engine.weight_manifest(self._options.dtype)
        base = None if attempt is None else self._base(attempt, manifest)
        frozen = self._kept_ungathered(base)
        if attempt is None:
            for _ in self._buckets(frozen):
                pass  # this rank only sends its shards
        else:
            manifest = self._transfer(attempt, manifest, base, frozen)
            with attempt.phase("verify"):
                self._verify(attempt, manifest)
            if on_commit is not None:
                on_commit()
            with attempt.phase("commit"):
                self._commit(attempt, manifest.version)
        answers, tolerance = self._run_canary(attempt, manifest)
        if attempt is None:
            return self._ranks.broadcast(None)
        self._published = manifest
        if self._stored is not None:
            self._stored.commit(manifest, answers, tolerance)
        attempt.examine_failed(manifest.version)
        return self._ranks.broadcast(attempt.result(manifest))

    def leave_groups(self) -> None:
        """Let the next publication build its process groups anew, such as after servers left or joined."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Free the transport's resources."""
        if self._transport is not None:
            self._transport.close()

    def _buckets(self, frozen: Collection[str], memory: BucketMemory | None = None) -> Iterator[WeightBucket]:
        # Engines of other packages may be older than this argument; they have no frozen weights.
        without = {"without": frozen} if frozen else {}
        return self._engine.weight_buckets(self._options.bucket_bytes, self._options.dtype, memory, **without)

    def _kept_ungathered(self, base: WeightManifest | None) -> Collection[str]:
        """The tensors that need not be gathered, because servers keep them and no step changes them. Collective.

        Args:
            base: of rank 0: the version from which servers keep tensors; ``None`` if they keep none.
        """
        if not isinstance(self._engine, TrainsAdapters) or not self._engine.frozen_weights:
            return ()
        # Newcomers get whole versions, and folders hold them: rank 0 writes all tensors.
        transport = self._transport
        writes_all = self._stored is not None or (transport is not None and stores_whole_versions(transport))
        is_kept = self._ranks.broadcast(base is not None and not writes_all)
        known = set() if not is_kept else {entry.name for entry in self._engine.weight_manifest().tensors}
        return known.intersection(self._engine.frozen_weights)

    def _transfer(
        self, attempt: Attempt, manifest: WeightManifest, base: WeightManifest | None, frozen: Collection[str]
    ) -> WeightManifest:
        """Prepare servers and send all buckets; returns the manifest with all checksums.

        All buckets are taken even if no server is left, because the other ranks send their shards.

        Args:
            attempt: the publication.
            manifest: without checksums.
            base: the version from which servers keep tensors; ``None`` to send every tensor.
            frozen: tensors of ``base`` that are not gathered.
        """
        assert self._transport is not None
        transport = self._transport
        with attempt.phase("prepare"):
            announced = replace(manifest, base_version=base.version if base else None)
            attempt.settle(transport.prepare(manifest.version, announced, attempt.servers))
        if self._stored is not None:
            self._stored.begin(manifest)
        memory = transport.memory() if attempt.servers else None
        buckets = self._buckets(frozen, memory)
        known = {entry.name: entry.checksum for entry in base.tensors} if base else {}
        of_manifest = {entry.name: entry for entry in manifest.tensors}
        checksums = {name: known[name] for name in frozen}
        kept = set(frozen)
        ungathered = [
            replace(entry, checksum=known[entry.name], encoding="kept")
            for entry in manifest.tensors
            if entry.name in frozen
        ]
        with attempt.phase("transfer"):
            pending, timing = None, (0, 0.0)
            start = time.perf_counter()
            for bucket in buckets:
                own = {name: checksum_of(bytes_of(tensor)) for name, tensor in bucket.tensors.items()}
                checksums |= own
                kept |= {name for name, checksum in own.items() if known.get(name) == checksum}
                entries = tuple(
                    replace(of_manifest[name], checksum=checksum, encoding="kept" if name in kept else "full")
                    for name, checksum in own.items()
                )
                notice = notice_of(manifest.version, bucket.index, entries)
                if bucket.index == 0:  # first, as in the manifest, whose order a server expects
                    notice = replace(notice, tensors=(*ungathered, *notice.tensors))
                gathered = time.perf_counter() - start
                if pending is not None:
                    attempt.settle_bucket(transport, pending, *timing)
                pending, timing = None, (sum(entry.n_bytes for entry, _ in notice.sent), gathered)
                if attempt.servers:
                    pending = transport.send(bucket, notice)
                if self._stored is not None:
                    self._stored.add(bucket, notice)
                start = time.perf_counter()
            if pending is not None:
                attempt.settle_bucket(transport, pending, *timing)
        complete = replace(manifest.with_checksums(checksums), base_version=base.version if base else None)
        return replace(
            complete,
            tensors=tuple(
                replace(entry, encoding="kept") if entry.name in kept else entry for entry in complete.tensors
            ),
        )

    def _base(self, attempt: Attempt, manifest: WeightManifest) -> WeightManifest | None:
        """The version from which servers can keep tensors: the last one, if all of them say that they have it."""
        base = self._published
        if base is None or not self._options.skip_unchanged:
            return None
        if [(e.name, e.dtype, e.shape) for e in base.tensors] != [(e.name, e.dtype, e.shape) for e in manifest.tensors]:
            return None
        states = attempt.states()
        return base if states and all(state and state.version == base.version for state in states) else None

    def _verify(self, attempt: Attempt, manifest: WeightManifest) -> None:
        assert self._transport is not None
        driver = attempt.driver
        if attempt.servers:
            try:
                self._transport.finish(manifest)
            except ServerError as error:
                attempt.settle({server.incarnation: Outcome(None, str(error)) for server in attempt.servers})

        def verify(server: ServerRecord) -> Receipt:
            receipt = driver.verify_update(server, manifest, timeout=self._options.timeout)
            expected = UpdatePlan(manifest, "")
            if driver.capabilities.checksums and (
                problem := receipt_problem(receipt, expected, incarnation=server.incarnation)
            ):
                raise ServerError(problem)
            return receipt

        attempt.call(verify)
        if not attempt.servers:
            self._transport.abort()

    def _commit(self, attempt: Attempt, version: int) -> None:
        assert self._transport is not None
        driver, timeout = attempt.driver, self._options.timeout

        def commit(server: ServerRecord) -> None:
            reason = ""
            try:
                with self._interrupted(driver, server):
                    driver.commit_update(server, version, timeout=timeout)
            except ServerError as error:
                # It may have been executed nevertheless, or be executed later: only the server's state decides.
                reason = str(error)
            state = settled_state(driver, server, timeout=reconcile_limit(timeout))
            if state.version != version:
                answered = reason or "it answered that it switched"
                raise ServerError(f"{answered}, but it is at version {state.version}, not {version}")
            if reason and (state.prepared == version or server.version == version):
                # An earlier trainer's weights may have the same version.
                raise ServerError(f"{reason}; it had weights of version {version} before, which may be others")

        if attempt.servers:
            attempt.call(commit)
            self._transport.commit(version)

    @contextmanager
    def _interrupted(self, driver: ServerDriver, server: ServerRecord) -> Iterator[None]:
        """With ``interrupts``: end a server's requests, and let it start none until it has switched."""
        options = self._options
        if not options.interrupts:
            yield
            return
        try:
            driver.pause(server, "abort", timeout=options.timeout)
            time.sleep(options.grace)
            yield
        finally:
            driver.resume(server, timeout=reconcile_limit(options.timeout))

    def _run_canary(self, attempt: Attempt | None, manifest: WeightManifest) -> tuple[Answers | None, float]:
        """Collective: the trainer's forward pass runs on all ranks. Returns the trainer's log-probabilities of what
        servers answered, ``None`` without a canary, and the tolerance."""
        canary = self._options.canary
        if canary is None:
            return None, 0.0
        completions: dict[str, Completion] = {}
        if attempt is not None:
            with attempt.phase("canary"):

                def ask(server: ServerRecord) -> None:
                    completions[server.incarnation] = ask_server(
                        attempt.driver, server, canary, timeout=self._options.timeout
                    )

                attempt.call(ask)
        completed = sorted({completion.token_ids for completion in completions.values()})
        token_ids = self._ranks.broadcast(completed)
        expected = dict(zip(token_ids, trainer_logprobs(self._engine, canary.prompt_ids, token_ids), strict=True))
        if attempt is None:
            return None, 0.0
        tolerance = TOLERANCE[manifest.tensors[0].dtype] if canary.tolerance is None else canary.tolerance

        def compare(server: ServerRecord) -> None:
            completion = completions[server.incarnation]
            if problem := canary_problem(
                completion, expected[completion.token_ids], version=manifest.version, tolerance=tolerance
            ):
                raise ServerError(problem)

        with attempt.phase("canary"):
            attempt.call(compare)
        return {ids: tuple(values) for ids, values in expected.items()}, tolerance
