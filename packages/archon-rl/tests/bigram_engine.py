"""Stand-ins for the engines: a table of next-token logits with Adam, and a sampler that reads it.

They keep the trainers' tests independent of any model, engine or rollout package.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import torch

from archon_core.config.decisions import Decision
from archon_core.distributed.ranks import DataRanks
from archon_core.generation import Completion
from archon_core.protocols import StepStats


class BigramEngine:
    """``protocols.TrainEngine`` for logits that depend on the previous token alone, in float64."""

    def __init__(self, config, *, role, layout, seed, total_steps, explicit=frozenset()):
        self.config, self.role, self.seed, self.total_steps = config, role, seed, total_steps
        self.decisions = [Decision(f"{role}.dtype", "default", "float64", "a table of this size can afford it")]
        self.version = 0
        self.device = torch.device("cpu")
        self.closed = False
        self.data_ranks = DataRanks()

    def generating(self):
        return nullcontext()

    @property
    def module(self):
        return self

    def initialize(self):
        if self.config.path:
            self.table = torch.load(Path(self.config.path) / "table.pt")
        else:
            size = self.config.model_config["vocab_size"]
            generator = torch.Generator().manual_seed(self.seed)
            self.table = torch.randn(size, size, generator=generator, dtype=torch.float64)
        if self.config.optimizer is not None:
            self.table.requires_grad_()
            self.optimizer = torch.optim.Adam([self.table], lr=self.config.optimizer.lr)

    def outputs(self, batch, request):
        logits = self.table[batch.input_ids] / request.temperature
        logprobs = logits.log_softmax(-1)
        has_target = batch.targets >= 0
        values = {
            "logits": logits,
            "logprobs": torch.where(has_target, logprobs.gather(1, batch.targets.clamp(min=0)[:, None])[:, 0], 0),
            "entropy": -(logprobs.exp() * logprobs).sum(-1),
        }
        return {name: values[name] for name in request.names}

    def _stats(self, batch, loss):
        weights = loss.weights(batch)
        sums = loss(self.outputs(batch, loss.request), batch)
        objective = sum(term / weights[unit] for unit, term in sums.terms.items())
        metrics = {name: float(value / weights[unit]) for name, (unit, value) in sums.metrics.items()}
        return objective, metrics

    def train_batch(self, batch, loss):
        objective, metrics = self._stats(batch, loss)
        self.optimizer.zero_grad()
        objective.backward()
        norm = float(self.table.grad.norm())
        self.optimizer.step()
        self.version += 1
        return StepStats(float(objective.detach()), norm, self.config.optimizer.lr, False, 1, batch.n_tokens, metrics)

    @torch.no_grad()
    def eval_batch(self, batch, loss):
        objective, metrics = self._stats(batch, loss)
        return StepStats(float(objective), None, None, False, 1, batch.n_tokens, metrics)

    @torch.no_grad()
    def forward_batch(self, batch, request):
        return self.outputs(batch, request)

    def save(self, path, format):
        path.mkdir(parents=True, exist_ok=True)
        torch.save(self.table.detach(), path / "table.pt")
        if format == "dcp":
            torch.save(self.optimizer.state_dict(), path / "optimizer.pt")
            (path / "version.json").write_text(json.dumps(self.version))

    def load(self, path, format):
        with torch.no_grad():
            self.table.copy_(torch.load(path / "table.pt"))
        self.optimizer.load_state_dict(torch.load(path / "optimizer.pt"))
        self.version = json.loads((path / "version.json").read_text())

    def close(self):
        self.closed = True


class BigramRollout:
    """``protocols.InferenceEngine`` that samples token by token from a ``BigramEngine``."""

    def __init__(self, config, *, trainer):
        self.trainer = trainer
        self.version = 0
        self.requests = []

    def update_weights(self, version):
        self.version = version

    def close(self):
        pass

    def generate(self, requests):
        self.requests += requests
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
