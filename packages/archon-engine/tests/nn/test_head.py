import pytest
import torch

from archon_core.contracts.packed import HeadInputs
from archon_engine.nn import head as head_module
from archon_engine.nn.head import (
    PLAIN,
    LanguageModelHead,
    LogitForm,
    ValueHead,
    linear_logprobs,
    linear_logprobs_and_entropy,
)

T, H, V = 37, 8, 50


@pytest.fixture(params=[1, 40 * V, 2**20], ids=["a token per chunk", "several chunks", "one chunk"])
def chunk_bytes(request, monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK_BYTES", request.param)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(T, H, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(V, H, dtype=torch.float64, generator=generator).requires_grad_()
    targets = torch.randint(-1, V, (T,), generator=generator)
    targets[3] = -1
    return hidden, weight, targets


FORMS = {"plain": PLAIN, "scaled": LogitForm(0.25), "capped": LogitForm(softcap=3.0), "both": LogitForm(4.0, 5.0)}


def formula(hidden, weight, targets, temperature, form=PLAIN):
    """log-softmax and entropy as the textbook writes them, over the whole [T, V] matrix."""
    logits = hidden @ weight.T * form.scale
    logits = logits if form.softcap is None else form.softcap * torch.tanh(logits / form.softcap)
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    at_target = logprobs.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return torch.where(targets >= 0, at_target, 0), torch.where(targets >= 0, entropy, 0)


@pytest.mark.usefixtures("chunk_bytes")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_equal_the_unfused_formula(inputs, temperature, form):
    hidden, weight, targets = inputs
    upstream = torch.randn(2, T, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = linear_logprobs_and_entropy(hidden, weight, targets, temperature, form=form)
    theirs = formula(hidden, weight, targets, temperature, form)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    ours_grads = torch.autograd.grad((torch.stack(ours) * upstream).sum(), (hidden, weight))
    their_grads = torch.autograd.grad((torch.stack(theirs) * upstream).sum(), (hidden, weight))
    for a, b in zip(ours_grads, their_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("chunk_bytes")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_log_probabilities_alone_have_the_same_gradient(inputs, form):
    hidden, weight, targets = inputs
    logprobs = linear_logprobs(hidden, weight, targets, 0.9, form=form)
    ours = torch.autograd.grad(logprobs.square().sum(), (hidden, weight))
    theirs = torch.autograd.grad(formula(hidden, weight, targets, 0.9, form)[0].square().sum(), (hidden, weight))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_frozen_weight_gets_no_gradient_and_the_hidden_states_do(inputs):
    hidden, weight, targets = inputs
    linear_logprobs(hidden, weight.detach(), targets, 1.0).sum().backward()
    assert hidden.grad.abs().sum() > 0
    assert weight.grad is None


def test_bfloat16_inputs_give_float32_outputs_close_to_the_exact_ones(inputs):
    hidden, weight, targets = (x.detach().bfloat16() if x.is_floating_point() else x for x in inputs)
    logprobs = linear_logprobs(hidden, weight, targets, 1.0)
    assert logprobs.dtype == torch.float32
    exact, _ = formula(hidden.double(), weight.double(), targets, 1.0)
    torch.testing.assert_close(logprobs.double(), exact, rtol=0, atol=0.05)


def test_entropy_keeps_its_digits_when_all_logits_are_large():
    # Multiples of 1/64 around 512 are exact in fp32, so that the head's own roundings are all there is. One rounding
    # of log p, near 512, is 3e-5.
    weight = 512 + torch.arange(-40, 40)[:, None] / 64
    targets = torch.zeros(1, dtype=torch.int64)
    _, entropy = linear_logprobs_and_entropy(torch.ones(1, 1), weight, targets, 1.0)
    _, exact = formula(torch.ones(1, 1).double(), weight.double(), targets, 1.0)
    torch.testing.assert_close(entropy.double(), exact, rtol=0, atol=2e-4)


def test_a_gpus_chunks_hold_enough_tokens_to_outweigh_reading_the_weight():
    sizes = {}
    for device in ("cpu", "cuda"):
        chunks = head_module._token_chunks(16_384, 151_936, torch.float32, device)
        sizes[device] = max(chunk.stop - chunk.start for chunk in chunks)
    # A product with n tokens does n operations per byte of a 16-bit weight; an H100 does 300 while it reads a byte.
    assert sizes["cuda"] > 1000 > sizes["cpu"]


def test_no_tokens_give_no_outputs():
    empty = torch.empty(0, H, requires_grad=True)
    logprobs = linear_logprobs(empty, torch.randn(V, H, requires_grad=True), torch.empty(0, dtype=torch.int64), 1.0)
    assert logprobs.shape == (0,)
    logprobs.sum().backward()


def test_outputs_at_chosen_positions_equal_those_of_a_full_pass():
    head = LanguageModelHead(H, V)
    torch.nn.init.normal_(head.weight)
    hidden, targets = torch.randn(T, H), torch.randint(0, V, (T,))
    positions = torch.tensor([5, 0, 36])
    full = head(hidden, HeadInputs(("logits", "logprobs"), targets=targets, temperature=2.0))
    some = head(hidden, HeadInputs(("logits", "logprobs"), targets=targets, temperature=2.0, positions=positions))
    for name in ("logits", "logprobs"):
        torch.testing.assert_close(some[name], full[name][positions])
    torch.testing.assert_close(full["logits"], hidden @ head.weight.T / 2.0)


def test_scored_places_alone_are_computed_with_the_numbers_of_a_full_pass(monkeypatch):
    head = LanguageModelHead(H, V).double()
    torch.nn.init.normal_(head.weight)
    hidden = torch.randn(T, H, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, V, (T,)).masked_fill(torch.arange(T) % 3 > 0, -1)
    whole = HeadInputs(("logprobs", "entropy"), targets=targets, temperature=2.0)
    rows = []
    original = head_module._tempered_logits
    monkeypatch.setattr(
        head_module, "_tempered_logits", lambda hidden, *rest: (rows.append(len(hidden)), original(hidden, *rest))[1]
    )

    def numbers(inputs):
        rows.clear()
        head.weight.grad = hidden.grad = None
        outputs = head(hidden, inputs)
        n_rows = sum(rows)
        (outputs["logprobs"].square().sum() + outputs["entropy"].sum()).backward()
        return n_rows, [*outputs.values(), hidden.grad, head.weight.grad]

    n_all, expected = numbers(whole)
    n_scored, found = numbers(whole.with_scored())
    assert (n_all, n_scored) == (T, int((targets >= 0).sum()))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_micro_batch_without_scored_places_gives_zeros_and_zero_gradients():
    head = LanguageModelHead(H, V)
    torch.nn.init.normal_(head.weight)
    hidden = torch.randn(T, H, requires_grad=True)
    outputs = head(hidden, HeadInputs(("logprobs",), targets=torch.full((T,), -1)).with_scored())
    assert torch.equal(outputs["logprobs"], torch.zeros(T))
    outputs["logprobs"].sum().backward()
    assert not hidden.grad.any()
    assert not head.weight.grad.any()


def test_logits_that_are_asked_for_are_scaled_and_capped_before_the_temperature():
    head = LanguageModelHead(H, V, scale=0.5, softcap=2.0)
    torch.nn.init.normal_(head.weight)
    hidden = torch.randn(T, H)
    logits = head(hidden, HeadInputs(("logits",), temperature=2.0))["logits"]
    torch.testing.assert_close(logits, 2.0 * torch.tanh(hidden @ head.weight.T * 0.5 / 2.0) / 2.0)


def test_the_value_head_is_a_linear_map_to_one_number():
    head = ValueHead(H)
    torch.nn.init.normal_(head.weight)
    hidden = torch.randn(T, H)
    torch.testing.assert_close(head(hidden, HeadInputs(("values",)))["values"], hidden @ head.weight[0])


@pytest.mark.parametrize(
    ("head", "outputs", "message"),
    [
        (LanguageModelHead, ("values",), "allowed are logprobs, entropy, logits"),
        (ValueHead, ("logprobs",), "allowed are values"),
        (LanguageModelHead, ("logprobs",), "without targets"),
        (LanguageModelHead, (), "found a request for no output"),
    ],
)
def test_outputs_that_a_head_does_not_have_are_refused(head, outputs, message):
    built = head(H) if head is ValueHead else head(H, V)
    with pytest.raises(ValueError, match=message):
        built(torch.zeros(T, H), HeadInputs(outputs))
