"""Stand-ins for the engines: a table of next-token logits with Adam, and a sampler that reads it.

They keep the trainers' tests independent of any model, engine or rollout package. On many ranks (``thread_ranks``)
they demand of their callers what real engines demand: collective calls, and equal batches on tensor ranks.
"""

from __future__ import annotations

import copy
import json
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import torch
from thread_ranks import ranks_here

from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine import StepStats
from archon_core.contracts.rollout import Completion
from archon_core.ranks.ranks import DataRanks


class BigramEngine:
    """``contracts.engine.TrainEngine`` for logits, or values, that depend on the previous token alone, in float64."""

    def __init__(self, config, *, role, layout, seed, total_steps, parts=None, explicit=frozenset()):
        assert parts is None or parts.model is None, "it has a model of its own"
        self.config, self.role, self.seed, self.total_steps = config, role, seed, total_steps
        self.decisions = [Decision(f"{role}.dtype", "default", "float64", "a table of this size can afford it")]
        self.version = 0
        self.device = torch.device("cpu")
        self.closed = False
        self.offloaded = False
        everyone = ranks_here()
        # Data ranks outside, tensor ranks inside, as in a layout.
        tensor_ranks = layout.dims["t"] if layout else 1
        self.data_ranks = DataRanks(
            rank=everyone.rank // tensor_ranks,
            size=everyone.size // tensor_ranks,
            everyone=everyone,
            members=tuple(range(0, everyone.size, tensor_ranks)),
        )

    @contextmanager
    def generating(self):
        self._together("generating")
        yield
        self._together("generated")

    def offload(self):
        self.offloaded = True

    def onload(self):
        self.offloaded = False

    def _together(self, what, value=None):
        """``value`` of every data rank; tensor ranks must have the same."""
        assert not self.offloaded, "used without onload()"
        said = self.data_ranks.everyone.gather((what, value))
        assert {name for name, _ in said} == {what}
        values = [value for _, value in said]
        for rank, value in enumerate(values):
            representative = values[max(m for m in self.data_ranks.members if m <= rank)]
            assert value == representative, "tensor ranks differ"
        return [values[member] for member in self.data_ranks.members]

    @property
    def module(self):
        return self

    def initialize(self):
        found = torch.load(Path(self.config.path) / "table.pt") if self.config.path else None
        size = self.config.model_config["vocab_size"] if found is None else len(found)
        width = 1 if self.config.is_critic else size
        if found is not None and found.shape[1] == width:
            self.table = found
        else:
            generator = torch.Generator().manual_seed(self.seed)
            self.table = torch.randn(size, width, generator=generator, dtype=torch.float64)
        if self.config.optimizer is not None:
            self.table.requires_grad_()
            self.optimizer = torch.optim.Adam([self.table], lr=self.config.optimizer.lr)

    def outputs(self, batch, request):
        if self.config.is_critic:
            assert request.names == ("values",)
            return {"values": self._values(batch)}
        logits = self.table[batch.input_ids] / request.temperature
        logprobs = logits.log_softmax(-1)
        has_target = batch.targets >= 0
        values = {
            "logits": logits,
            "logprobs": torch.where(has_target, logprobs.gather(1, batch.targets.clamp(min=0)[:, None])[:, 0], 0),
            "entropy": -(logprobs.exp() * logprobs).sum(-1),
        }
        return {name: values[name] for name in request.names}

    def _values(self, batch):
        """Each token adds its own number: a value that depends on all tokens up to its place."""
        numbers = self.table[batch.input_ids, 0].split(batch.lengths)
        return torch.cat([row.cumsum(0) for row in numbers]) if len(batch) else self.table.new_zeros(0)

    def _stats(self, batch, loss):
        """This rank's part of the objective, and the loss, metrics and tokens of all data ranks."""
        self._together("batch", (batch.input_ids.tolist(), batch.lengths))
        shares = self._together("weights", {unit: float(weight) for unit, weight in loss.weights(batch).items()})
        weights = {unit: sum(share[unit] for share in shares) for unit in shares[0]}
        assert all(weight > 0 for weight in weights.values())
        sums = loss(self.outputs(batch, loss.request), batch)
        objective = sum(term / weights[unit] for unit, term in sums.terms.items())
        metrics = {name: float(value / weights[unit]) for name, (unit, value) in sums.metrics.items()}
        parts = self._together("sums", (float(objective.detach()), metrics, batch.n_tokens))
        total = {name: sum(metrics[name] for _, metrics, _ in parts) for name in metrics}
        return objective, sum(loss for loss, _, _ in parts), total, sum(n_tokens for *_, n_tokens in parts)

    def train_batch(self, batch, loss):
        objective, value, metrics, n_tokens = self._stats(batch, loss)
        self.optimizer.zero_grad()
        objective.backward()
        self.table.grad = torch.tensor(self._together("gradients", self.table.grad.tolist()), dtype=torch.float64).sum(
            0
        )
        norm = float(self.table.grad.norm())
        self.optimizer.step()
        self.version += 1
        return StepStats(value, norm, self.config.optimizer.lr, False, 1, n_tokens, metrics)

    @torch.no_grad()
    def eval_batch(self, batch, loss):
        _, value, metrics, n_tokens = self._stats(batch, loss)
        return StepStats(value, None, None, False, 1, n_tokens, metrics)

    @torch.no_grad()
    def forward_batch(self, batch, request):
        self._together("forward", (batch.input_ids.tolist(), batch.lengths))
        # As the engine does: a rank without sequences computes nothing.
        return self.outputs(batch, request) if len(batch) else {}

    def save(self, path, format):
        assert len(set(self.data_ranks.everyone.gather(path))) == 1
        if self.data_ranks.everyone.is_first:
            path.mkdir(parents=True, exist_ok=True)
            torch.save(self.table.detach(), path / "table.pt")
            if format == "dcp":
                torch.save(self.optimizer.state_dict(), path / "optimizer.pt")
                (path / "version.json").write_text(json.dumps(self.version))
        self.data_ranks.everyone.barrier()

    def stage(self):
        self._together("stage")
        return StagedTable(self.table.detach().clone(), copy.deepcopy(self.optimizer.state_dict()), self.version)

    def load(self, path, format):
        assert len(set(self.data_ranks.everyone.gather(path))) == 1
        with torch.no_grad():
            self.table.copy_(torch.load(path / "table.pt"))
        self.optimizer.load_state_dict(torch.load(path / "optimizer.pt"))
        self.version = json.loads((path / "version.json").read_text())

    def close(self):
        self.closed = True


@dataclass
class StagedTable:
    """``contracts.engine.StagedState``."""

    table: torch.Tensor
    optimizer: dict
    version: int

    def write(self, folder, ranks):
        assert len(set(ranks.gather(folder))) == 1
        if ranks.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(self.table, folder / "table.pt")
            torch.save(self.optimizer, folder / "optimizer.pt")
            (folder / "version.json").write_text(json.dumps(self.version))
        ranks.barrier()


class BigramRollout:
    """``contracts.rollout.InferenceEngine`` that samples token by token from a ``BigramEngine``."""

    def __init__(self, config, *, trainer):
        self.trainer = trainer
        self.version = 0
        self.requests = []

    def update_weights(self, version):
        self.version = version
        return {}

    def close(self):
        pass

    def generate(self, requests):
        self.requests += requests
        with self.trainer.generating():
            return [[self._complete(request, seed) for seed in request.seeds] for request in requests]

    def _complete(self, request, seed):
        options, generator = request.config, torch.Generator().manual_seed(seed)
        ids, logprobs, last = [], [], request.prompt_ids[-1]
        while len(ids) < options.max_new_tokens:
            temperature = 1.0 if options.greedy else options.temperature
            row = (self.trainer.table[last].detach() / temperature).log_softmax(-1)
            last = int(row.argmax() if options.greedy else torch.multinomial(row.exp(), 1, generator=generator))
            ids.append(last)
            logprobs.append(float(row[last]))
            if last in options.stop_token_ids:
                return Completion(tuple(ids), tuple(logprobs), (self.version,) * len(ids), "stop")
        return Completion(tuple(ids), tuple(logprobs), (self.version,) * len(ids), "length")


class BigramScorer:
    """``contracts.rollout.ScoringEngine`` for a table that a ``BigramEngine`` has saved."""

    made: ClassVar[list[BigramScorer]] = []

    def __init__(self, config, model, *, option, ranks, folder, options=None, devices_before=0, stop=None):
        self.config, self.model, self.option, self.ranks, self.folder = config, model, option, ranks, folder
        self.table = torch.load(Path(model.path) / "table.pt")
        self.decisions = [Decision("teacher.rollout.addresses", "compared", "not compared", "a table has no name")]
        self.closed = False
        self.made.append(self)

    def score(self, sequences):
        assert len(set(map(str, self.ranks.gather(sequences)))) == 1, "every rank has the whole batch"
        logprobs = (self.table / self.model.temperature).log_softmax(-1)
        return [[float(logprobs[a, b]) for a, b in pairwise(ids)] for ids in sequences]

    def close(self):
        self.closed = True
