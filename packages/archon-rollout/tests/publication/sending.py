"""Publishers over each transport, and what they leave behind."""

from __future__ import annotations

from dataclasses import replace

import torch

from archon_core.serving.arena_file import FOLDER
from archon_rollout.plugin import archon_weight_transports
from archon_rollout.publication.canary import Canary
from archon_rollout.publication.publisher import Publisher, PublisherOptions

TRANSPORTS = {spec.name: spec for spec in archon_weight_transports()}


def make_publisher(engine, driver, context, transport, **options):
    options = {"canary": Canary((1, 2, 3), n_tokens=4), "timeout": 20.0, "bucket_bytes": 2**20, **options}
    context = replace(context, bucket_bytes=options["bucket_bytes"], timeout=options["timeout"])
    return Publisher(engine, driver, TRANSPORTS[transport].load()(context), PublisherOptions(**options))


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def arenas(run):
    """Files in shared memory of one run; other tests have theirs at the same time."""
    return sorted(path.name for path in FOLDER.glob(f"archon-weights-*-{run}-*")) if FOLDER.is_dir() else []
