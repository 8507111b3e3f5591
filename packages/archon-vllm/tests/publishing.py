"""The trainer's end of a publication to one server, with archon-core alone."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import torch
import torch.distributed as dist

from archon_core.receiving.checksum import bytes_of, checksum_of
from archon_core.receiving.elastic_group import SENDER, join_group, send
from archon_core.receiving.shared_memory import view_tensor
from archon_core.serving.arena import ArenaHeader, SlotPlace, SlotState, begin_writing, end_writing
from archon_core.serving.arena_file import create_arena
from archon_core.serving.manifest import TensorEntry, WeightManifest, offsets_of, plan_buckets, size_of_bucket
from archon_core.serving.update import BucketNotice, UpdatePlan, receipt_problem

SECONDS = 60.0
BUCKET_BYTES = 2**16


def manifest_of(tensors, version):
    """A manifest with the checksums of ``tensors``."""
    return WeightManifest(
        version,
        tuple(
            TensorEntry(name, str(t.dtype).removeprefix("torch."), tuple(t.shape), checksum_of(bytes_of(t)))
            for name, t in tensors.items()
        ),
    )


def prepare(driver, record, tensors, version, *, transport="shm", spoil=None):
    """Send and verify; returns the receipts. ``spoil`` changes the bytes of a bucket before they are sent."""
    manifest = manifest_of(tensors, version)
    sender = {"shm": ArenaSender, "distributed": GroupSender}[transport]()
    with sender:
        plan = UpdatePlan(manifest, transport, sender.setup, record.incarnation)
        sender.beginning(lambda: driver.begin_update(record, plan, timeout=SECONDS))
        receipts = []
        for index, entries in enumerate(plan_buckets(manifest.tensors, BUCKET_BYTES)):
            content = torch.zeros(size_of_bucket(entries), dtype=torch.uint8)
            for entry, offset in zip(entries, offsets_of(entries), strict=True):
                view_tensor(content, entry, offset).copy_(tensors[entry.name])
            notice = BucketNotice(version, index, entries, offsets_of(entries), content.numel(), {"timeout": SECONDS})
            if spoil is not None:
                spoil(content)
            receipt = sender.send(content, notice, lambda n: driver.receive_bucket(record, n, timeout=SECONDS))
            assert receipt_problem(receipt, notice, incarnation=record.incarnation) == "" or spoil is not None
            receipts.append(receipt)
        receipt = driver.verify_update(record, manifest, timeout=SECONDS)
        assert receipt_problem(receipt, plan, incarnation=record.incarnation) == ""
    return receipts


def publish(driver, record, tensors, version, **options):
    """Send, verify and commit."""
    prepare(driver, record, tensors, version, **options)
    driver.commit_update(record, version, timeout=SECONDS)


class ArenaSender:
    """An arena of shared memory."""

    def __enter__(self):
        return self

    def __init__(self):
        self.arena = create_arena(ArenaHeader.for_buckets(2**21), run=f"test-vllm-{secrets.token_hex(4)}")
        self.setup = {"arena": self.arena.name}

    def __exit__(self, *error):
        self.arena.close()

    def beginning(self, call):
        call()

    def send(self, content, notice, call):
        slot = notice.index % 2
        generation = begin_writing(self.arena.memory, slot)
        torch.frombuffer(self.arena.slot(slot, content.numel()), dtype=torch.uint8).copy_(content)
        state = SlotState(generation, notice.version, notice.index, notice.n_bytes)
        end_writing(self.arena.memory, slot, state)
        place = SlotPlace(self.arena.name, slot, generation).as_data()
        return call(BucketNotice(**{**vars(notice), "place": place}))


class GroupSender:
    """A process group of two."""

    def __enter__(self):
        return self

    def __init__(self):
        limit = timedelta(seconds=SECONDS)
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=limit, wait_for_workers=False)
        self.prefix = f"weights/{secrets.token_hex(4)}"
        self.setup = {"host": "127.0.0.1", "port": self.store.port, "prefix": self.prefix, "timeout": SECONDS}
        self.threads = ThreadPoolExecutor(1)

    def __exit__(self, *error):
        self.threads.shutdown()

    def beginning(self, call):
        joining = self.threads.submit(join_group, "127.0.0.1", self.store.port, self.prefix, SENDER, timeout=SECONDS)
        call()
        self.group = joining.result()

    def send(self, content, notice, call):
        sending = self.threads.submit(send, self.group, content, timeout=SECONDS, runs=notice.runs)
        receipt = call(notice)
        sending.result()
        return receipt
