"""The messages of a weight update: the plan, one notice per bucket, and the server's receipts.

A publication in two phases::

    plan      -> begin: the server allocates, or refuses
    notice    -> receipt, per bucket: the server copies the tensors and returns checksums that it computed
    verify    -> receipt: version and checksums of everything that the server holds for the new version
    commit    -> the server switches; or abort -> it drops what it received

Messages are JSON objects. A server answers a receipt from its own memory, never from the notice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from archon_core.errors import ServerError
from archon_core.serving.manifest import TensorEntry, WeightManifest, offsets_of, padded, size_of_bucket
from archon_core.serving.wire import fields_of, to_data


@dataclass(frozen=True)
class UpdatePlan:
    """The start of an update.

    Attributes:
        manifest: the tensors to come. Tensors that are not gathered yet have no checksum.
        transport: name of the weight transport.
        setup: what the transport's receiving end needs, such as the name of an arena or the address of a store.
        incarnation: the server for which the plan was made. Another incarnation must refuse it.
        publisher: id of the trainer's publisher, made anew by every start. Versions of one publisher only rise; a
            trainer that resumed from an older checkpoint, or another run, is another publisher.
    """

    manifest: WeightManifest
    transport: str
    setup: Mapping[str, Any] = field(default_factory=dict)
    incarnation: str = ""
    publisher: str = ""

    @property
    def version(self) -> int:
        """Version of the weights to come."""
        return self.manifest.version

    def as_data(self) -> dict[str, Any]:
        """The plan as a JSON object."""
        return to_data(self)

    @classmethod
    def from_data(cls, data: Any) -> UpdatePlan:
        """Read a received plan. Raises ServerError if it is malformed."""
        found = fields_of(cls, data, manifest=Mapping, transport=str, setup=Mapping, incarnation=str, publisher=str)
        return cls(**{**found, "manifest": WeightManifest.from_data(found["manifest"])})


@dataclass(frozen=True)
class BucketNotice:
    """One bucket that is ready to be received.

    Attributes:
        version: version of the weights.
        index: number of the bucket, from 0.
        tensors: its tensors, with checksums; those with encoding ``kept`` have no bytes in the bucket.
        offsets: offset in the bucket of each tensor with encoding ``full``, in order. Tensors that are kept leave gaps.
        n_bytes: size of the bucket, gaps included.
        place: where the bytes are, such as slot and generation of an arena; what the transport's receiver needs.
    """

    version: int
    index: int
    tensors: tuple[TensorEntry, ...]
    offsets: tuple[int, ...]
    n_bytes: int
    place: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sent(self) -> tuple[tuple[TensorEntry, int], ...]:
        """The tensors whose bytes are in the bucket, with their offsets."""
        full = [entry for entry in self.tensors if entry.encoding == "full"]
        return tuple(zip(full, self.offsets, strict=True))

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """The byte ranges of the tensors in the bucket, with adjacent tensors in one range. Tensors without elements
        have none."""
        runs: list[tuple[int, int]] = []
        for entry, offset in self.sent:
            if not entry.n_bytes:
                continue
            end = offset + entry.n_bytes
            if runs and padded(runs[-1][1]) == offset:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((offset, end))
        return tuple(runs)

    @property
    def kept(self) -> tuple[TensorEntry, ...]:
        """The tensors that the receiver takes from the base version."""
        return tuple(entry for entry in self.tensors if entry.encoding == "kept")

    def as_data(self) -> dict[str, Any]:
        """The notice as a JSON object."""
        return to_data(self)

    @classmethod
    def from_data(cls, data: Any) -> BucketNotice:
        """Read a received notice. Raises ServerError if it is malformed or its tensors lie outside the bucket."""
        found = fields_of(
            cls,
            data,
            version=int,
            index=int,
            tensors=(list, tuple),
            offsets=(list, tuple),
            n_bytes=int,
            place=Mapping,
        )
        tensors = tuple(TensorEntry.from_data(entry) for entry in found["tensors"])
        offsets = tuple(found["offsets"])
        full = [entry for entry in tensors if entry.encoding == "full"]
        fits = len(offsets) == len(full) and all(
            isinstance(offset, int) and 0 <= offset <= found["n_bytes"] - entry.n_bytes
            for entry, offset in zip(full, offsets, strict=False)
        )
        if not fits:
            raise ServerError(
                f"bucket {found['index']}: found offsets {offsets} for {len(full)} tensors in {found['n_bytes']} bytes"
                "; every tensor has one, inside the bucket; check the sender's version of archon-core"
            )
        return cls(**{**found, "tensors": tensors, "offsets": offsets})


def notice_of(version: int, index: int, entries: Sequence[TensorEntry]) -> BucketNotice:
    """The notice of a bucket with these tensors, each at the offset that ``plan_buckets`` gives it."""
    offsets = zip(entries, offsets_of(entries), strict=True)
    full = tuple(offset for entry, offset in offsets if entry.encoding == "full")
    return BucketNotice(version, index, tuple(entries), full, size_of_bucket(entries) if full else 0)


@dataclass(frozen=True)
class Receipt:
    """A server's acknowledgement, of one bucket or of a whole update.

    Attributes:
        incarnation: uuid of the server's start.
        version: version that it is receiving, or has received.
        checksums: tensor -> checksum of the bytes that the server holds, computed by the server. Empty if the server
            cannot compute them.
    """

    incarnation: str
    version: int
    checksums: Mapping[str, str] = field(default_factory=dict)

    def as_data(self) -> dict[str, Any]:
        """The receipt as a JSON object."""
        return to_data(self)

    @classmethod
    def from_data(cls, data: Any) -> Receipt:
        """Read a received receipt. Raises ServerError if it is malformed."""
        receipt = cls(**fields_of(cls, data, incarnation=str, version=int, checksums=Mapping))
        if not all(isinstance(item, str) for pair in receipt.checksums.items() for item in pair):
            raise ServerError("Receipt.checksums: found values that are not text; check the server's archon-core")
        return receipt


def receipt_problem(receipt: Receipt, expected: UpdatePlan | BucketNotice, *, incarnation: str) -> str:
    """Why a receipt does not prove that the server holds the tensors; empty if it does.

    Args:
        receipt: the server's answer.
        expected: what it was sent: the notice of a bucket, or the plan with all checksums.
        incarnation: the server that was meant.
    """
    entries = expected.tensors if isinstance(expected, BucketNotice) else expected.manifest.tensors
    if receipt.incarnation != incarnation:
        return f"another incarnation answered: {receipt.incarnation}, not {incarnation}; the server was restarted"
    if receipt.version != expected.version:
        return f"it holds version {receipt.version}, not {expected.version}"
    missing = [entry.name for entry in entries if entry.name not in receipt.checksums]
    if missing:
        return f"it has no {_some(missing)}"
    wrong = [entry.name for entry in entries if receipt.checksums[entry.name] != entry.checksum]
    if wrong:
        return f"it has other values of {_some(wrong)}"
    return ""


def _some(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + more
