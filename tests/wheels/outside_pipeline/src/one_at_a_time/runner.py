"""Runs a step as its schedule says: every micro-batch to the end and back, while the other ranks wait."""

import torch
import torch.distributed as dist


class OneAtATime:
    """An ``archon_core.contracts.pipeline.PipelinedRunner`` for one stage per rank."""

    def __init__(self, pipeline):
        self.pipeline = pipeline
        [(self.number, self.stage)] = pipeline.stages.items()
        self.is_first, self.is_last = self.number == 0, self.number == len(pipeline.plan) - 1
        self.members = dist.get_process_group_ranks(pipeline.group)

    def train(self, micro_batches, objective):
        weights = self.pipeline.groups[self.number]
        weights.accumulate()
        for micro_batch in micro_batches:
            x = self._input(micro_batch.input_ids, cut=self.pipeline.tensor_ranks)
            if not self.is_first:
                x.requires_grad_()
            out = self.stage(x, micro_batch.packed)
            if self.is_last:
                objective(micro_batch.whole_outputs(out), micro_batch).backward()
            else:
                self._send(out.detach(), 1)
                out.backward(self._receive(out.shape, 1))
            if not self.is_first:
                self._send(x.grad, -1)
        weights.reduce()

    @torch.no_grad()
    def forward(self, micro_batches):
        for micro_batch in micro_batches:
            x = self._input(micro_batch.input_ids, cut=self.pipeline.tensor_ranks)
            out = self.stage(x, micro_batch.packed)
            outputs = self._finish(micro_batch.whole_outputs(out) if self.is_last else out)
            yield micro_batch, outputs
        self.pipeline.groups[self.number].end_forward_passes()

    @torch.no_grad()
    def pass_through(self, x, packed):
        return self._finish(self.stage(self._input(x, cut=1), packed))

    def record_next(self):
        """Nothing is timed."""

    def recorded(self, *, step):
        return None

    def _input(self, ids, *, cut):
        """Token ids on the first stage, what the stage before gives on the others."""
        return ids if self.is_first else self._receive((ids.shape[0] // cut, self.pipeline.width), -1)

    def _finish(self, out):
        """Hand on what comes out; the outputs of the last stage, on every rank."""
        if not self.is_last:
            self._send(out, 1)
        outputs = [{name: value.cpu() for name, value in out.items()} if self.is_last else None]
        dist.broadcast_object_list(outputs, self.members[-1], group=self.pipeline.group)
        return {name: value.to(self.pipeline.device) for name, value in outputs[0].items()}

    def _send(self, tensor, step):
        dist.send(tensor.contiguous(), self.members[self.pipeline.rank + step], group=self.pipeline.group)

    def _receive(self, shape, step):
        tensor = torch.empty(shape, dtype=self.pipeline.dtype, device=self.pipeline.device)
        dist.recv(tensor, self.members[self.pipeline.rank + step], group=self.pipeline.group)
        return tensor
