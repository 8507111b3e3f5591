"""Messages between trainers and servers survive JSON, and malformed ones are refused with the field."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from archon_core.errors import ServerError
from archon_core.serving.manifest import (
    TensorEntry,
    WeightManifest,
    offsets_of,
    padded,
    plan_buckets,
    size_of_bucket,
)
from archon_core.serving.record import ServerRecord, ServerState
from archon_core.serving.token_versions import VersionSpan, spans_of, versions_of
from archon_core.serving.update import BucketNotice, Receipt, UpdatePlan, receipt_problem

EMBED = TensorEntry("embed", "float32", (10, 4), "aa")
NORM = TensorEntry("norm", "bfloat16", (4,), "bb")
HEAD = TensorEntry("head", "float32", (10, 4), "cc", "kept")
MANIFEST = WeightManifest(7, (EMBED, NORM, HEAD), base_version=6)
RECORD = ServerRecord("127.0.0.1:80", "abc", "served", tensor=2, version=3, started_at=1.5)
NOTICE = BucketNotice(7, 0, (EMBED, HEAD, NORM), (0, 192), 256, {"slot": 1})


@pytest.mark.parametrize(
    "message",
    [
        RECORD,
        ServerState("abc", 3, paused=True, updating=4),
        MANIFEST,
        UpdatePlan(MANIFEST, "shm", {"arena": "x"}, "abc"),
        NOTICE,
        Receipt("abc", 7, {"embed": "aa"}),
    ],
    ids=lambda message: type(message).__name__,
)
def test_messages_survive_json(message):
    assert type(message).from_data(json.loads(json.dumps(message.as_data()))) == message


def test_unknown_fields_of_a_newer_sender_are_ignored_and_missing_ones_are_not():
    data = RECORD.as_data()
    assert ServerRecord.from_data({**data, "colour": "green"}) == RECORD
    del data["incarnation"]
    with pytest.raises(ServerError, match="ServerRecord: found no incarnation"):
        ServerRecord.from_data(data)


@pytest.mark.parametrize(
    ("kind", "data", "text"),
    [
        (ServerRecord, {**RECORD.as_data(), "tensor": True}, "ServerRecord.tensor: found True; allowed is int"),
        (ServerRecord, {**RECORD.as_data(), "address": "nowhere"}, "allowed is host:port"),
        (ServerRecord, {**RECORD.as_data(), "pipeline": 0}, "sizes of 1 or more"),
        (ServerState, {"incarnation": "a", "version": 1, "paused": 0}, "paused: found 0; allowed is bool"),
        (ServerState, [], "found list; allowed is a JSON object"),
        (TensorEntry, {"name": "w", "dtype": "float31", "shape": [1]}, "found dtype 'float31'; allowed are float64"),
        (TensorEntry, {"name": "w", "dtype": "float32", "shape": [-1]}, "sizes of 0 or more"),
        (TensorEntry, {"name": "w", "dtype": "float32", "shape": [1], "encoding": "delta"}, "allows full, kept"),
        (WeightManifest, {"version": 1, "tensors": [EMBED.__dict__, EMBED.__dict__]}, "found 'embed' twice"),
        (BucketNotice, {**NOTICE.as_data(), "offsets": [0]}, "every tensor has one, inside the bucket"),
        (BucketNotice, {**NOTICE.as_data(), "offsets": [0, 255]}, "inside the bucket"),
        (BucketNotice, {**NOTICE.as_data(), "offsets": [-1, 0]}, "inside the bucket"),
        (Receipt, {"incarnation": "a", "version": 1, "checksums": {"w": 3}}, "not text"),
    ],
)
def test_malformed_messages_are_refused(kind, data, text):
    with pytest.raises(ServerError, match=text.replace("(", r"\(")):
        kind.from_data(data)


def test_a_notice_pairs_sent_tensors_with_their_offsets():
    assert NOTICE.sent == ((EMBED, 0), (NORM, 192))
    assert NOTICE.kept == (HEAD,)


def test_buckets_keep_the_order_and_a_large_tensor_is_a_bucket_alone():
    entries = [TensorEntry(f"w{i}", "float32", (size,)) for i, size in enumerate([16, 16, 100, 16, 16, 16])]
    assert [[entry.name for entry in bucket] for bucket in plan_buckets(entries, 128)] == [
        ["w0", "w1"],
        ["w2"],
        ["w3", "w4"],
        ["w5"],
    ]
    assert plan_buckets(entries, 2**40) == [tuple(entries)]
    assert plan_buckets([], 128) == []


def test_tensors_in_a_bucket_are_aligned():
    bucket = (NORM, EMBED, NORM)
    assert offsets_of(bucket) == (0, 64, 64 + 192)
    assert size_of_bucket(bucket) == 64 + 192 + 64
    assert padded(0) == 0


def test_a_manifest_gets_checksums_without_another_change():
    changed = MANIFEST.with_checksums({"norm": "zz"})
    assert [entry.checksum for entry in changed.tensors] == ["aa", "zz", "cc"]
    assert changed.n_bytes == 160 + 8 + 160


class TestReceipts:
    whole = Receipt("abc", 7, {"embed": "aa", "norm": "bb", "head": "cc"})

    def problem(self, receipt):
        return receipt_problem(receipt, UpdatePlan(MANIFEST, "shm"), incarnation="abc")

    def test_equal_checksums_of_every_tensor_prove_an_update(self):
        assert self.problem(self.whole) == ""

    @pytest.mark.parametrize(
        ("changed", "text"),
        [
            ({"incarnation": "new"}, "the server was restarted"),
            ({"version": 6}, "it holds version 6, not 7"),
            ({"checksums": {"embed": "aa", "norm": "bb"}}, "it has no 'head'"),
            ({"checksums": {"embed": "cc", "norm": "bb", "head": "aa"}}, "other values of 'embed', 'head'"),
        ],
    )
    def test_everything_else_is_a_problem(self, changed, text):
        assert text in self.problem(replace(self.whole, **changed))


class TestVersionSpans:
    def test_spans_and_versions_convert_into_each_other(self):
        versions = (5, 5, 6, 6, 6, 9)
        assert spans_of(versions) == (VersionSpan(5, 0, 2), VersionSpan(6, 2, 5), VersionSpan(9, 5, 6))
        assert versions_of(spans_of(versions), 6) == versions
        assert versions_of((), 0) == ()

    @pytest.mark.parametrize(
        ("spans", "text"),
        [
            ([(5, 0, 2), (6, 3, 6)], "adjacent spans"),
            ([(5, 0, 2), (6, 1, 6)], "adjacent spans"),
            ([(5, 0, 0)], "adjacent spans"),
            ([(6, 0, 2), (5, 2, 6)], "versions never go back"),
            ([(6, 0, 2)], "spans over 2 tokens; the completion has 6"),
        ],
    )
    def test_spans_that_do_not_describe_a_completion_are_refused(self, spans, text):
        with pytest.raises(ServerError, match=text):
            versions_of([VersionSpan(*span) for span in spans], 6)
