"""Blocks on one rank against the published formulas, token by token in float64, and against transformers' blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from transformers import DeepseekV3Config, GptOssConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from archon_core.contracts.moe import ClampedGate, MoESettings
from archon_core.contracts.packed import PackedSequences
from archon_core.errors import ConfigError, DataError, ModelError
from archon_engine.compat import TorchDispatchMode
from archon_engine.options.archon import ArchonOptions
from archon_moe.block import MoEBlock
from archon_moe.builder import MoEBlocks
from archon_moe.experts import GroupedExperts
from archon_moe.kernels import grouped_mm
from archon_moe.kernels.choice import choose_implementation

EXACT = {"rtol": 1e-11, "atol": 1e-12}


def block(made_of: MoESettings, *, dtype: torch.dtype = torch.float64, layer: int = 0, seed: int = 0) -> MoEBlock:
    made = MoEBlocks(ArchonOptions(moe_router_dtype=made_of.router_dtype)).build(made_of, layer).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    if made.router.choice_bias is not None:
        made.router.choice_bias.normal_(std=0.3, generator=generator)
    return made


def rows(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def packed(n_tokens: int, **kwargs: object) -> PackedSequences:
    return replace(PackedSequences.from_lengths((n_tokens,)), **kwargs)


def expert(made: GroupedExperts, e: int, x: Tensor) -> Tensor:
    gate, up = made.gate_proj[e] @ x, made.up_proj[e] @ x
    if made.gate_bias is not None:
        gate, up = gate + made.gate_bias[e], up + made.up_bias[e]
    if made.clamped_gate is not None:
        alpha, limit = made.clamped_gate.alpha, made.clamped_gate.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        h = gate * torch.sigmoid(alpha * gate) * (up + 1)
    else:
        h = {"silu": functional.silu, "gelu": functional.gelu}[made.hidden_act](gate) * up
    y = made.down_proj[e] @ h
    return y if made.down_bias is None else y + made.down_bias[e]


def formula(made: MoEBlock, x: Tensor) -> Tensor:
    """Token by token, as DeepSeek-V3's report writes it (arXiv:2412.19437, equations 12 to 16)."""
    s = made.settings
    outputs = []
    for u in x:
        logits = made.router.weight @ u + (made.router.bias if s.router_bias else 0)
        scores = logits.sigmoid() if s.score == "sigmoid" else logits.softmax(0)
        ranking = scores.detach() + (made.router.choice_bias if s.choice_bias else 0)
        size = s.n_experts // s.n_groups
        groups = [(sum(sorted(ranking[g * size : (g + 1) * size].tolist())[-2:]), g) for g in range(s.n_groups)]
        allowed = {g for _, g in sorted(groups)[-s.top_k_groups :]}
        eligible = [(ranking[e].item(), e) for e in range(s.n_experts) if e // size in allowed]
        chosen = [e for _, e in sorted(eligible)[-s.top_k :]]
        total = sum(scores[e] for e in chosen) if s.norm_topk_prob else 1.0
        y = sum(s.scaling * scores[e] / total * expert(made.experts, e, u) for e in chosen)
        if made.shared is not None:
            gate = torch.sigmoid(made.shared_gate(u)) if made.shared_gate is not None else 1.0
            y = y + gate * made.shared(u)
        outputs.append(y)
    return torch.stack(outputs) if outputs else x * 0


@st.composite
def sizes(draw: st.DrawFn) -> tuple[MoESettings, int]:
    n_groups = draw(st.sampled_from([1, 2, 3]))
    n_experts = n_groups * draw(st.integers(1, 4))
    top_k_groups = draw(st.integers(1, n_groups))
    shared = draw(st.sampled_from([0, 5]))
    made_of = MoESettings(
        hidden_size=draw(st.integers(1, 7)),
        intermediate_size=draw(st.integers(1, 6)),
        n_experts=n_experts,
        top_k=draw(st.integers(1, n_experts // n_groups * top_k_groups)),
        hidden_act=draw(st.sampled_from(["silu", "gelu"])),
        score=draw(st.sampled_from(["softmax", "sigmoid"])),
        norm_topk_prob=draw(st.booleans()),
        scaling=draw(st.sampled_from([1.0, 2.5])),
        n_groups=n_groups,
        top_k_groups=top_k_groups,
        choice_bias=draw(st.booleans()),
        shared_intermediate_size=shared,
        shared_gate=draw(st.booleans()) if shared else False,
        expert_bias=draw(st.booleans()),
        router_bias=draw(st.booleans()),
        clamped_gate=draw(st.sampled_from([None, ClampedGate(1.702, 0.3)])),
        router_dtype=draw(st.sampled_from(["fp32", None])),
    )
    return made_of, draw(st.integers(0, 9))


@given(sizes())
@settings(max_examples=60, deadline=None)
def test_outputs_and_all_gradients_are_those_of_the_formula(case: tuple[MoESettings, int]) -> None:
    made_of, n_tokens = case
    made = block(made_of)
    x = rows(n_tokens, made_of.hidden_size).requires_grad_()
    y, expected = made(x, packed(n_tokens)), formula(made, x)
    torch.testing.assert_close(y, expected, **EXACT)
    grad = rows(*y.shape, seed=4)
    of_all = [x, *made.parameters()]
    found = torch.autograd.grad(y, of_all, grad)
    if not n_tokens:
        assert all(not gradient.any() for gradient in found)
        return
    wanted = torch.autograd.grad(expected, of_all, grad, allow_unused=True, materialize_grads=True)
    for gradient, of_formula in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, of_formula, **EXACT)


@given(
    n_rows=st.integers(0, 12),
    n_experts=st.integers(1, 5),
    k=st.integers(1, 3),
    like_gpt_oss=st.booleans(),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(max_examples=50, deadline=None)
def test_grouped_products_and_the_loop_agree_on_any_choice(
    n_rows: int, n_experts: int, k: int, like_gpt_oss: bool, seed: int, data: st.DataObject
) -> None:
    """Choices may be missing, as on a rank that holds part of the experts, and may all be the same."""
    numbers = st.integers(-1, n_experts - 1)
    chosen = data.draw(
        st.one_of(st.lists(numbers, min_size=n_rows * k, max_size=n_rows * k), st.just([0] * n_rows * k))
    )
    choice = torch.tensor(chosen, dtype=torch.int32).view(n_rows, k)
    results = []
    # grouped_mm wants rows of a multiple of 16 bytes.
    made_of = MoESettings(8, 12, n_experts, 1, hidden_act="gelu")
    if like_gpt_oss:
        made_of = replace(made_of, expert_bias=True, clamped_gate=ClampedGate(limit=1.0))
    loop, grouped = (GroupedExperts(made_of, way) for way in (False, True))
    for made in (loop, grouped):
        for number, parameter in enumerate(made.parameters()):
            parameter.data = rows(*parameter.shape, dtype=torch.float32, seed=seed + number)
        x = rows(n_rows, 8, dtype=torch.float32, seed=seed).requires_grad_()
        w = rows(n_rows, k, dtype=torch.float32, seed=seed + 9).requires_grad_()
        y = made(x, choice, w, int((choice >= 0).sum()))
        y.backward(rows(*y.shape, dtype=torch.float32, seed=seed + 10))
        results.append([y, x.grad, w.grad, *(p.grad for p in made.parameters())])
    for of_loop, of_grouped in zip(*results, strict=True):
        torch.testing.assert_close(of_grouped, of_loop, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("adapted", [False, True])
def test_kernels_that_write_no_sums_without_terms_leave_no_gradients(
    adapted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Blackwell; here a wrapper leaves NaN in the place of the sums of experts without tokens."""
    multiply = torch._grouped_mm

    def leaving(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
        product = multiply(a, b, offs=offs)
        if a.ndim == b.ndim == 2:
            product[offs.diff(prepend=offs.new_zeros(1)) == 0] = torch.nan
        return product

    class Leaving(torch.autograd.Function):
        """``grouped_mm`` with such a backward pass, for adapters, which autograd differentiates."""

        @staticmethod
        def forward(ctx: Any, a: Tensor, b: Tensor, offs: Tensor) -> Tensor:
            ctx.save_for_backward(a, b, offs)
            return multiply(a, b, offs=offs)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            (a, b, offs), grad = ctx.saved_tensors, grad.contiguous()
            return multiply(grad, b.mT, offs=offs), leaving(a.t(), grad, offs=offs), None

    def differentiable(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
        return Leaving.apply(a, b, offs)

    monkeypatch.setattr(grouped_mm, "grouped_mm", leaving)
    monkeypatch.setattr(torch.nn.functional, "grouped_mm", differentiable)
    monkeypatch.setattr(grouped_mm, "leaves_empty_sums", lambda device: True)
    made = GroupedExperts(MoESettings(8, 12, 4, 1), grouped_gemm=True)
    for number, parameter in enumerate(made.parameters()):
        parameter.data = rows(*parameter.shape, dtype=torch.float32, seed=number)
    if adapted:
        for parameter in made.parameters():
            parameter.requires_grad_(False)
        made.add_low_rank(("gate_proj", "up_proj", "down_proj"), 4, 1.0)
        for number, parameter in enumerate(made.lora.parameters()):
            parameter.data = rows(*parameter.shape, dtype=torch.float32, seed=number)
    choice = torch.tensor([[0], [2], [2], [-1]], dtype=torch.int32)
    y = made(rows(4, 8, dtype=torch.float32, seed=1), choice, torch.ones(4, 1), 3)
    y.sum().backward()
    trained = [parameter.grad for parameter in made.parameters() if parameter.requires_grad]
    assert trained
    for gradient in trained:
        assert not gradient[[1, 3]].any()
        assert gradient[[0, 2]].flatten(1).any(1).all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("norm", [True, False])
def test_qwen3_moe_blocks_of_transformers_give_the_same(dtype: torch.dtype, tolerance: float, norm: bool) -> None:
    config = Qwen3MoeConfig(
        hidden_size=24, moe_intermediate_size=20, num_experts=9, num_experts_per_tok=3, norm_topk_prob=norm
    )
    config._experts_implementation = "eager"
    theirs = Qwen3MoeSparseMoeBlock(config).to(dtype)
    made = block(MoESettings(24, 20, 9, 3, norm_topk_prob=norm), dtype=dtype)
    with torch.no_grad():
        theirs.gate.weight.copy_(made.router.weight)
        theirs.experts.gate_up_proj.copy_(torch.cat([made.experts.gate_proj, made.experts.up_proj], 1))
        theirs.experts.down_proj.copy_(made.experts.down_proj)
    if dtype == torch.float64:
        # transformers takes the softmax in fp32 in any case: its experts are compared, behind our router.
        theirs.gate.forward = lambda h: (None, (routing := made.router.route(*made.router(h))).weights, routing.experts)
        theirs.gate.weight = made.router.weight
    x, grad = rows(31, 24, dtype=dtype), rows(31, 24, dtype=dtype, seed=4)
    parameters_in, theirs_in = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = made(parameters_in, packed(31)), theirs(theirs_in[None])[0]
    y.backward(grad)
    router_grad, made.router.weight.grad = made.router.weight.grad, None
    expected.backward(grad)
    gate_up = torch.cat([made.experts.gate_proj.grad, made.experts.up_proj.grad], 1)
    for found, wanted in (
        (y, expected),
        (parameters_in.grad, theirs_in.grad),
        (router_grad, theirs.gate.weight.grad),
        (gate_up, theirs.experts.gate_up_proj.grad),
        (made.experts.down_proj.grad, theirs.experts.down_proj.grad),
    ):
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_deepseek_v3_blocks_of_transformers_give_the_same(dtype: torch.dtype, tolerance: float) -> None:
    config = DeepseekV3Config(
        hidden_size=24,
        moe_intermediate_size=20,
        n_routed_experts=12,
        num_experts_per_tok=3,
        n_group=4,
        topk_group=2,
        n_shared_experts=2,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
    )
    config._experts_implementation = "eager"
    theirs = DeepseekV3MoE(config).to(dtype)
    made_of = MoESettings(
        24,
        20,
        12,
        3,
        score="sigmoid",
        norm_topk_prob=True,
        scaling=2.5,
        n_groups=4,
        top_k_groups=2,
        choice_bias=True,
        shared_intermediate_size=40,
    )
    made = block(made_of, dtype=dtype)
    with torch.no_grad():
        theirs.gate.weight.copy_(made.router.weight)
        theirs.gate.e_score_correction_bias.copy_(made.router.choice_bias)
        theirs.experts.gate_up_proj.copy_(torch.cat([made.experts.gate_proj, made.experts.up_proj], 1))
        theirs.experts.down_proj.copy_(made.experts.down_proj)
        for name in ("gate_proj", "up_proj", "down_proj"):
            getattr(theirs.shared_experts, name).weight.copy_(getattr(made.shared, name).weight)
    x = rows(31, 24, dtype=dtype)
    y, expected = made(x, packed(31)), theirs(x[None])[0]
    # transformers routes in fp32, whatever the type.
    assert (y - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_gpt_oss_blocks_of_transformers_give_the_same(dtype: torch.dtype, tolerance: float) -> None:
    config = GptOssConfig(hidden_size=24, intermediate_size=20, num_local_experts=9, num_experts_per_tok=3)
    config._experts_implementation = "eager"
    theirs = GptOssMLP(config).to(dtype)
    gate = ClampedGate(config.swiglu_alpha, config.swiglu_limit)
    made_of = MoESettings(
        24, 20, 9, 3, norm_topk_prob=True, expert_bias=True, router_bias=True, clamped_gate=gate, router_dtype=None
    )
    made = block(made_of, dtype=dtype)
    ours = made.experts
    with torch.no_grad():
        ours.gate_proj.mul_(4)  # some projections reach the limit
        ours.up_proj.mul_(4)
        theirs.router.weight.copy_(made.router.weight)
        theirs.router.bias.copy_(made.router.bias)
        theirs.experts.gate_up_proj.copy_(torch.stack([ours.gate_proj, ours.up_proj], 2).flatten(1, 2).mT)
        theirs.experts.gate_up_proj_bias.copy_(torch.stack([ours.gate_bias, ours.up_bias], 2).flatten(1, 2))
        theirs.experts.down_proj.copy_(ours.down_proj.mT)
        theirs.experts.down_proj_bias.copy_(ours.down_bias)
    x, grad = rows(31, 24, dtype=dtype), rows(31, 24, dtype=dtype, seed=4)
    x_here, x_there = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, (expected, _) = made(x_here, packed(31)), theirs(x_there[None])
    y.backward(grad)
    expected[0].backward(grad)
    gate_up = theirs.experts.gate_up_proj.grad.mT
    for found, wanted in (
        (y, expected[0]),
        (x_here.grad, x_there.grad),
        (made.router.weight.grad, theirs.router.weight.grad),
        (made.router.bias.grad, theirs.router.bias.grad),
        (ours.gate_proj.grad, gate_up[:, ::2]),
        (ours.up_proj.grad, gate_up[:, 1::2]),
        (ours.gate_bias.grad, theirs.experts.gate_up_proj_bias.grad[:, ::2]),
        (ours.up_bias.grad, theirs.experts.gate_up_proj_bias.grad[:, 1::2]),
        (ours.down_proj.grad, theirs.experts.down_proj.grad.mT),
        (ours.down_bias.grad, theirs.experts.down_proj_bias.grad),
    ):
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name().split(".")[0] in ("aten::mm", "aten::addmm_", "aten::_grouped_mm")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("grouped", [False, True])
def test_each_half_of_a_split_backward_pass_computes_its_own_gradients_only(grouped: bool) -> None:
    made = GroupedExperts(MoESettings(8, 8, 1, 1, expert_bias=True), grouped)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    x = rows(4, 8, dtype=torch.float32).requires_grad_()
    y = made(x, torch.zeros(4, 1, dtype=torch.int32), torch.ones(4, 1), 4).sum()
    counts = []
    of_halves: list[Tensor] = []
    for asked in ([x], list(made.parameters()), [x, *made.parameters()]):
        with Products() as products:
            found = torch.autograd.grad(y, asked, retain_graph=True)
        counts.append(products.count)
        of_halves += found if len(counts) < 3 else []
    assert counts == [3, 4, 6]
    for half, whole in zip(of_halves, found, strict=True):
        assert torch.equal(half, whole)


def test_padding_is_neither_routed_nor_given_outputs() -> None:
    made = block(MoESettings(8, 6, 4, 2))
    x = rows(7, 8).requires_grad_()
    pack = replace(PackedSequences.from_lengths((3, 2, 2)), n_padding=2)
    y = made(x, pack)
    torch.testing.assert_close(y[:5], formula(made, x[:5]), **EXACT)
    assert not y[5:].any()
    y.sum().backward()
    assert not x.grad[5:].any()


def test_bfloat16_is_routed_in_fp32_and_computed_in_bfloat16() -> None:
    made_of = MoESettings(16, 16, 8, 2, norm_topk_prob=True)
    made, exact = block(made_of, dtype=torch.bfloat16), block(made_of, dtype=torch.bfloat16).to(torch.float64)
    x = rows(20, 16, dtype=torch.bfloat16)
    torch.testing.assert_close(
        made.router.route(*made.router(x)).experts, exact.router.route(*exact.router(x.double())).experts
    )
    y = made(x, packed(20))
    assert y.dtype == torch.bfloat16
    assert (y - exact(x.double(), packed(20))).abs().max() < 0.02 * y.abs().max()


def test_moe_router_dtype_sets_the_dtype_of_logits() -> None:
    for option, dtype in (("fp32", torch.float32), (None, torch.bfloat16)):
        made = MoEBlocks(ArchonOptions(moe_router_dtype=option)).build(MoESettings(16, 16, 8, 2), 0).to(torch.bfloat16)
        logits, scores = made.router(rows(3, 16, dtype=torch.bfloat16))
        assert (logits.dtype, scores.dtype) == (dtype, torch.float32)


def test_recorded_choices_are_followed_and_reported_back() -> None:
    made = block(MoESettings(8, 6, 6, 2, norm_topk_prob=True), layer=1)
    x = rows(5, 8)
    own = made.router.route(*made.router(x)).experts
    other = torch.randint(0, 6, (5, 3, 2), generator=torch.Generator().manual_seed(0), dtype=torch.int16)
    other[:, 1] = own
    torch.testing.assert_close(made(x, packed(5, experts=other)), made(x, packed(5)))
    other[0, 1] = torch.tensor([(own[0, 0] + 1) % 6, (own[0, 0] + 2) % 6])
    other[1, 1] = -1  # the router's own choice
    other[2, 1] = -1
    replayed = made.router.route(*made.router(x), other[:, 1])
    assert replayed.experts[0].tolist() == other[0, 1].tolist()
    torch.testing.assert_close(replayed.experts[1:], own[1:])
    said: dict[int, Tensor] = {}
    pack = replace(PackedSequences.from_lengths((3, 2)), n_padding=2, experts=other, record_experts=said.__setitem__)
    made(x, pack)
    assert said.keys() == {1}
    assert said[1].dtype == torch.int16
    assert torch.equal(said[1], torch.cat([replayed.experts[:3], torch.full((2, 2), -1)]))
    weights = replayed.scores[0, replayed.experts[0]]
    torch.testing.assert_close(replayed.weights[0], weights / weights.sum())
    assert not torch.equal(made(x, packed(5, experts=other))[0], made(x, packed(5))[0])


def test_replayed_experts_whose_scores_underflow_have_weight_zero_not_nan() -> None:
    router = block(MoESettings(8, 6, 4, 2, norm_topk_prob=True), dtype=torch.float32).router
    logits = torch.tensor([[400.0, 0.0, 0.0, 0.0]], requires_grad=True)
    routing = router.route(logits, logits.softmax(-1), torch.tensor([[1, 2]]))
    assert routing.weights.tolist() == [[0.0, 0.0]]
    routing.weights.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_recorded_choices_of_another_model_are_refused() -> None:
    made = block(MoESettings(8, 6, 6, 2), layer=1)
    with pytest.raises(DataError, match=r"found a tensor of shape \[5, 1, 2\]; layer 1 needs \[tokens, layers, 2\]"):
        made(rows(5, 8), packed(5, experts=torch.zeros(5, 1, 2, dtype=torch.int16)))
    with pytest.raises(DataError, match="found 6 in layer 1; allowed are 0 to 5"):
        made(rows(5, 8), packed(5, experts=torch.full((5, 2, 2), 6, dtype=torch.int16)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"top_k": 9}, "top_k: found 9; allowed are 1 to the 8 experts"),
        ({"n_groups": 3}, "n_groups: found 3, which does not divide the 8 experts"),
        ({"n_groups": 4, "top_k": 5, "top_k_groups": 2}, "found 5; allowed are 1 to the 4 experts of the 2 groups"),
        ({"n_groups": 4, "top_k_groups": 5}, "top_k_groups: found 5; there are 4 groups"),
        ({"shared_gate": True}, "shared_gate: found true without a shared expert"),
        ({"hidden_act": "sulu"}, "did you mean 'silu'"),
    ],
)
def test_invalid_settings_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        MoEBlocks(ArchonOptions()).build(replace(MoESettings(8, 6, 8, 2), **changed), 0)


def test_device_and_dtype_choose_the_implementation_of_experts() -> None:
    assert choose_implementation("cuda", torch.bfloat16).name == "grouped_mm"
    assert choose_implementation("cpu", torch.float32).name == "loop"
    assert choose_implementation("cpu", torch.float32, True).name == "grouped_mm"
    assert choose_implementation("cuda", torch.bfloat16, sizes=(64, 24)).name == "grouped_mm"
    assert choose_implementation("cuda", torch.bfloat16, sizes=(64, 4)).name == "loop"
    with pytest.raises(ConfigError, match=r"needs rows of a multiple of 16 bytes, and a size of 18 makes rows of 72"):
        choose_implementation("cpu", torch.float32, True, (64, 18))
    in_float64 = choose_implementation("cpu", torch.float64)
    assert in_float64.name == "loop"
    assert "bfloat16 and float32, not in float64" in in_float64.reason
    with pytest.raises(ConfigError, match="moe_grouped_gemm: found true, but grouped_mm on cpu computes in"):
        choose_implementation("cpu", torch.float64, True)
