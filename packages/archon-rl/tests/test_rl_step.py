"""Parts of a step of reinforcement learning that no result of a short run would show."""

from types import SimpleNamespace

import pytest
import torch

from archon_core.contracts.batch import Batch
from archon_rl.algorithm import Algorithm
from archon_rl.losses.behaviour import BehaviourWeight
from archon_rl.losses.policy import ClippedPolicyTerm
from archon_rl.trainer.rl_step import RLStep
from archon_rl.trainer.roles import RoleEngines

SAMPLED = torch.tensor([0.0, -1.0, -2.0, 0.0], dtype=torch.float64)
OWN = torch.tensor([-9.0, -1.5, -2.5, -9.0])


@pytest.mark.parametrize(
    ("behaviour", "replace", "expected"),
    [
        (None, False, {"logprobs": SAMPLED}),
        (None, True, {"logprobs": OWN.double()}),
        (BehaviourWeight(), False, {"logprobs": SAMPLED, "prox_logprobs": OWN.double()}),
    ],
    ids=["as sampled", "recomputed", "decoupled"],
)
def test_the_policy_is_compared_with_the_log_probabilities_that_the_options_ask_for(behaviour, replace, expected):
    mask = torch.tensor([False, True, True, False])
    batch = Batch(torch.zeros(4, dtype=torch.int64), (4,), {"loss_mask": mask, "logprobs": SAMPLED})
    step = RLStep(
        collection=None,
        algorithm=Algorithm(name="test", loss=ClippedPolicyTerm(behaviour=behaviour), replace_logprobs=replace),
        engines=RoleEngines(actor=SimpleNamespace(forward_batch=lambda batch, request: {"logprobs": OWN})),
        rollout=None,
        seed=0,
    )
    completed, distances = step.add_logprobs(batch)
    assert set(completed.token_fields) == {"loss_mask", *expected}
    for name, values in expected.items():
        assert torch.equal(completed.token_fields[name], values), name
    assert distances == ({"rollout_logprob_gap": 0.5} if replace or behaviour else {})
