import pytest
import torch
from torch import nn

from archon_core.contracts.engine_config import OptimizerConfig
from archon_core.errors import ConfigError, WeightsError
from archon_engine.optimizer.named_optimizer import NamedOptimizer
from archon_engine.step.grad_norm import clip_gradients, global_gradient_norm


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed.weight": (7, 4), "layers.0.proj.weight": (4, 4), "layers.0.norm.weight": (4,)}
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def set_gradients(named, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in named.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_adamw_decays_matrices_and_leaves_norms_alone():
    named = parameters()
    before = {name: p.detach().clone() for name, p in named.items()}
    optimizer = NamedOptimizer(named, OptimizerConfig(lr=0.1, weight_decay=0.5), total_steps=None)
    for parameter in named.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.1)
    torch.testing.assert_close(named["embed.weight"].detach(), before["embed.weight"] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(named["layers.0.norm.weight"].detach(), before["layers.0.norm.weight"])


def test_one_adamw_step_is_the_published_formula():
    named = parameters()
    before = {name: p.detach().clone() for name, p in named.items()}
    set_gradients(named, seed=1)
    config = OptimizerConfig(lr=0.1, weight_decay=0.0, beta1=0.8, beta2=0.9, eps=1e-6)
    NamedOptimizer(named, config, total_steps=None).step(0.1)
    for name, parameter in named.items():
        # After the first step both bias-corrected moments are the gradient and its square (arXiv:1711.05101).
        expected = before[name] - 0.1 * parameter.grad / (parameter.grad.abs() + 1e-6)
        torch.testing.assert_close(parameter.detach(), expected)


def test_muon_leaves_filters_of_convolutions_to_adamw():
    named = {
        "layers.0.filters.weight": nn.Parameter(torch.ones(3, 1, 4)),
        "layers.0.up": nn.Parameter(torch.ones(3, 2, 4)),
    }
    optimizer = NamedOptimizer(named, OptimizerConfig(type="muon", lr=0.1), total_steps=None)
    set_gradients(named, seed=1)
    optimizer.step(0.1)
    entries = {name: set(state) for name, state in optimizer.state().items()}
    assert entries == {
        "layers.0.filters.weight": {"step", "exp_avg", "exp_avg_sq"},
        "layers.0.up": {"momentum_buffer"},
    }


@pytest.mark.parametrize("kind", ["adamw", "adam"])
def test_the_memory_order_of_a_gradient_changes_nothing(kind):
    first, second = parameters(), parameters()
    for named in (first, second):
        optimizer = NamedOptimizer(named, OptimizerConfig(type=kind, lr=0.1), total_steps=None)
        set_gradients(named, seed=1)
        if named is second:
            named["embed.weight"].grad = named["embed.weight"].grad.T.contiguous().T
        optimizer.step(0.1)
    for name in first:
        assert torch.equal(first[name], second[name])


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd", "muon"])
def test_state_moves_to_another_optimizer_under_its_names(kind):
    config = OptimizerConfig(type=kind, lr=0.1, weight_decay=0.1)
    first, second = parameters(), parameters()
    original = NamedOptimizer(first, config, total_steps=None)
    set_gradients(first, seed=1)
    original.step(0.1)
    resumed = NamedOptimizer(second, config, total_steps=None)
    with torch.no_grad():
        for name in first:
            second[name].copy_(first[name])
    state = {name: {key: value.clone() for key, value in s.items()} for name, s in original.state().items()}
    resumed.load_state(state)
    for named, optimizer in ((first, original), (second, resumed)):
        set_gradients(named, seed=2)
        optimizer.step(0.1)
    for name in first:
        assert torch.equal(first[name], second[name])


def test_loading_state_replaces_all_that_was_there():
    config = OptimizerConfig(lr=0.1)
    named = parameters()
    optimizer = NamedOptimizer(named, config, total_steps=None)
    fresh = optimizer.state()
    set_gradients(named, seed=1)
    optimizer.step(0.1)
    optimizer.load_state(fresh)
    assert optimizer.state() == {}


@pytest.mark.parametrize(("saved", "kind"), [("adamw", "sgd"), ("sgd", "adamw"), ("adamw", "muon"), ("sgd", "muon")])
def test_the_state_of_another_optimizer_is_refused(saved, kind):
    named = parameters()
    original = NamedOptimizer(named, OptimizerConfig(type=saved, lr=0.1), total_steps=None)
    set_gradients(named, seed=1)
    original.step(0.1)
    other = NamedOptimizer(parameters(), OptimizerConfig(type=kind, lr=0.1), total_steps=None)
    with pytest.raises(WeightsError, match=rf"(?s)found .*optimizer\.type='{kind}' keeps .*use the type with which"):
        other.load_state(original.state())
    assert other.state() == {}


def test_muon_takes_hidden_matrices_and_adamw_the_rest():
    named = parameters()
    optimizer = NamedOptimizer(named, OptimizerConfig(type="muon", lr=0.1), total_steps=None)
    set_gradients(named, seed=1)
    optimizer.step(0.1)
    keys = {name: sorted(state) for name, state in optimizer.state().items()}
    assert keys["layers.0.proj.weight"] == ["momentum_buffer"]
    assert keys["embed.weight"] == keys["layers.0.norm.weight"] == ["exp_avg", "exp_avg_sq", "step"]


def test_the_learning_rate_follows_the_schedule_in_steps_of_the_run():
    config = OptimizerConfig(lr=2.0, lr_scheduler_type="linear", warmup_steps_proportion=0.2)
    optimizer = NamedOptimizer(parameters(), config, total_steps=10)
    assert optimizer.learning_rate(0) == 1.0
    assert optimizer.learning_rate(2) == 2.0
    assert optimizer.learning_rate(9) == 0.0


@pytest.mark.parametrize("options", [{"lr_scheduler_type": "cosine"}, {"warmup_steps_proportion": 0.1}])
def test_a_rate_that_depends_on_the_number_of_steps_needs_one(options):
    with pytest.raises(ConfigError, match=r"found no number of steps.*pass total_steps"):
        NamedOptimizer(parameters(), OptimizerConfig(**options), total_steps=None)


def test_the_norm_is_that_of_all_gradients_as_one_vector():
    named = parameters()
    set_gradients(named, seed=3)
    whole = torch.cat([p.grad.flatten() for p in named.values()])
    torch.testing.assert_close(global_gradient_norm(named.values()), whole.norm())


def test_clipping_scales_to_the_limit_and_leaves_smaller_norms_alone():
    named = parameters()
    set_gradients(named, seed=3)
    kept = {name: p.grad.clone() for name, p in named.items()}
    norm = global_gradient_norm(named.values())
    clip_gradients(named.values(), norm, float(norm) * 2)
    assert all(torch.equal(named[name].grad, kept[name]) for name in named)
    clip_gradients(named.values(), norm, 0.5)
    assert float(global_gradient_norm(named.values())) == pytest.approx(0.5)
