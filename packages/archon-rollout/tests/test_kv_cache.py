from dataclasses import replace

import pytest
import torch

from archon_core.contracts.packed import AttentionSettings, PackedSequences
from archon_engine.nn.attention import PackedAttention
from archon_engine.nn.latent_attention import LatentAttention, LatentSizes
from archon_engine.nn.rotary import RopeArguments, RotaryEmbedding
from archon_rollout import kv_cache
from archon_rollout.kv_cache import DecodeCache, KeptSequence, PromptCache

HEADS, KV_HEADS, HEAD_DIM, SCALE = 6, 2, 4, 0.3
LAYERS = ("0", "1")


class Reference:
    """Rows of tokens with their queries, keys and values per layer, kept whole."""

    def __init__(self, textbook_attention, seed: int, dtype: torch.dtype) -> None:
        self.textbook_attention = textbook_attention
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype
        self.rows: list[dict[str, list[torch.Tensor]]] = []

    def tokens(self, n: int) -> dict[str, list[torch.Tensor]]:
        def random(heads):
            return torch.randn(n, heads, HEAD_DIM, generator=self.generator, dtype=self.dtype)

        return {layer: [random(HEADS), random(KV_HEADS), random(KV_HEADS)] for layer in LAYERS}

    def extend(self, row: int, tokens: dict[str, list[torch.Tensor]]) -> None:
        for layer in LAYERS:
            pairs = zip(self.rows[row][layer], tokens[layer], strict=True)
            self.rows[row][layer] = [torch.cat(pair) for pair in pairs]

    def attended(self, layer: str, window: int | None) -> torch.Tensor:
        """The newest token of every row, attending to its own row."""
        return torch.stack([self.textbook_attention(*row[layer], scale=SCALE, window=window)[-1] for row in self.rows])

    def lengths(self) -> list[int]:
        return [len(row["0"][0]) for row in self.rows]


def decode_and_compare(cache: DecodeCache, reference: Reference, windows: dict[str, int | None]) -> None:
    positions = torch.tensor(reference.lengths())
    new = [reference.tokens(1) for _ in reference.rows]
    for row, tokens in enumerate(new):
        reference.extend(row, tokens)
    longest, is_even = int(positions.max()) + 1, len(set(positions.tolist())) == 1
    step = cache.begin_step(positions, longest, is_even=is_even)
    packed = PackedSequences.from_lengths((1,) * len(new))
    for layer in LAYERS:
        q, k, v = (torch.cat([tokens[layer][part] for tokens in new]) for part in range(3))
        got = step.attend(layer, q, k, v, packed, AttentionSettings(SCALE, window=windows[layer]))
        torch.testing.assert_close(got, reference.attended(layer, windows[layer]))


def add(cache: DecodeCache, reference: Reference, length: int, copies: int = 1) -> None:
    prompt = reference.tokens(length)
    kept = KeptSequence({layer: tuple(prompt[layer][1:]) for layer in LAYERS})
    cache.write_rows(len(reference.rows), kept, copies)
    reference.rows += [dict(prompt) for _ in range(copies)]


@pytest.mark.parametrize("by_products", [True, False], ids=["as on a CPU", "as on other devices"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("windows", [{"0": None, "1": None}, {"0": None, "1": 3}, {"0": 1, "1": 5}])
def test_decoding_equals_attention_over_the_whole_sequence_while_rows_come_grow_and_go(
    dtype, windows, by_products, tiny, monkeypatch
):
    monkeypatch.setattr(kv_cache, "SPARE_PLACES", 2)  # so that the buffers grow
    monkeypatch.setattr(kv_cache, "attends_by_products", lambda x: by_products)
    cache, reference = DecodeCache(max_rows=5, max_places=60), Reference(tiny.textbook_attention, 0, dtype)
    add(cache, reference, length=7)
    add(cache, reference, length=1, copies=3)
    for _ in range(12):
        decode_and_compare(cache, reference, windows)
    # Rows 0 and 2 end; row 3 takes the place of row 0, and what they leave behind must not be seen any more.
    cache.move_rows(torch.tensor([3]), torch.tensor([0]), max(reference.lengths()))
    reference.rows = [reference.rows[3], reference.rows[1]]
    decode_and_compare(cache, reference, windows)
    add(cache, reference, length=3)
    add(cache, reference, length=30)
    for _ in range(4):
        decode_and_compare(cache, reference, windows)
    assert reference.lengths() == [18, 18, 7, 34]


def test_samples_that_share_a_prompt_diverge_without_touching_each_other(tiny):
    cache, reference = DecodeCache(max_rows=3, max_places=10), Reference(tiny.textbook_attention, 1, torch.float64)
    add(cache, reference, length=4, copies=3)
    for _ in range(3):
        decode_and_compare(cache, reference, {"0": None, "1": None})


@pytest.mark.parametrize("window", [None, 3])
def test_capped_scores_are_those_of_attention_over_the_whole_sequence(window, tiny):
    reference = Reference(tiny.textbook_attention, 3, torch.float64)
    cache = DecodeCache(max_rows=2, max_places=20)
    add(cache, reference, length=5, copies=2)
    new = reference.tokens(1)
    step = cache.begin_step(torch.tensor([5, 5]), 6)
    q, k, v = (torch.cat([part, part]) for part in new["0"])
    settings = AttentionSettings(SCALE, window=window, softcap=0.5)
    got = step.attend("0", q, k, v, PackedSequences.from_lengths((1, 1)), settings)
    reference.extend(0, new)
    whole = PackedAttention("0", settings)(*reference.rows[0]["0"], PackedSequences.from_lengths((6,)))[-1]
    torch.testing.assert_close(got, torch.stack([whole, whole]))
    prompt = PromptCache().attend("0", *reference.rows[0]["0"], PackedSequences.from_lengths((6,)), settings)
    torch.testing.assert_close(prompt[-1], whole)


@pytest.mark.parametrize("window", [None, 2])
def test_a_prompt_cache_attends_within_each_prompt_and_keeps_its_keys_and_values(window, tiny):
    lengths = (3, 1, 5)
    reference = Reference(tiny.textbook_attention, 2, torch.float64)
    prompts = [reference.tokens(n) for n in lengths]
    cache = PromptCache()
    packed = PackedSequences.from_lengths(lengths)
    for layer in LAYERS:
        q, k, v = (torch.cat([prompt[layer][part] for prompt in prompts]) for part in range(3))
        got = cache.attend(layer, q, k, v, packed, AttentionSettings(SCALE, window=window))
        expected = [tiny.textbook_attention(*prompt[layer], scale=SCALE, window=window) for prompt in prompts]
        torch.testing.assert_close(got, torch.cat(expected))
    for kept, prompt in zip(cache.split(lengths), prompts, strict=True):
        assert all(torch.equal(kept.keys_values[layer][i], prompt[layer][i + 1]) for layer in LAYERS for i in range(2))


def test_states_of_recurrent_layers_follow_their_rows():
    prompts = PromptCache()
    assert prompts.states("0") is None
    prompts.keep_states("0", (torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([10.0, 20.0, 30.0])))
    first, second, third = prompts.split((4, 1, 2))
    cache = DecodeCache(max_rows=2, max_places=8)
    cache.write_rows(0, first, copies=2)
    cache.reserve(max_rows=4, max_places=8)
    cache.write_rows(2, second, copies=1)
    cache.write_rows(3, third, copies=1)
    cache.move_rows(torch.tensor([3]), torch.tensor([0]), longest=4)  # row 0 ends, and the last one takes its place
    step = cache.begin_step(torch.tensor([2, 4, 1]), longest=5)
    rows, numbers = step.states("0")
    assert (rows[:, 0].tolist(), numbers.tolist()) == ([3, 1, 2], [30, 10, 20])
    step.keep_states("0", (rows + 1, numbers))
    assert cache.begin_step(torch.tensor([3, 5]), longest=6).states("0")[0][:, 0].tolist() == [4, 2]


@pytest.mark.parametrize("by_products", [False, True])
def test_latents_in_the_cache_give_the_attention_of_one_pass(by_products, monkeypatch):
    monkeypatch.setattr(kv_cache, "SPARE_PLACES", 2)  # so that the buffers grow
    monkeypatch.setattr(kv_cache, "attends_by_products", lambda x: by_products)
    sizes = LatentSizes(
        hidden_size=16, n_heads=4, query_rank=6, key_value_rank=5, content_dim=6, rotated_dim=4, value_dim=7
    )
    attention = LatentAttention(sizes, 0, scale=0.3, norm_eps=1e-6).to(torch.float64)
    generator = torch.Generator().manual_seed(1)
    for parameter in attention.parameters():
        parameter.requires_grad_(False).normal_(generator=generator)
    rotary = RotaryEmbedding(RopeArguments(4, 64, {"rope_type": "default", "rope_theta": 100.0}, interleaved=True))
    lengths, n_prompt = (12, 15), (3, 6)
    sequences = [torch.randn(n, 16, dtype=torch.float64, generator=generator) for n in lengths]

    def attend(x, packed):
        return attention(x, rotary(packed, torch.float64), packed)

    prompts, cache = PromptCache(), DecodeCache(max_rows=2, max_places=20)
    packed = replace(PackedSequences.from_lengths(n_prompt), cache=prompts)
    found = attend(torch.cat([x[:n] for x, n in zip(sequences, n_prompt, strict=True)]), packed)
    rows = [list(part) for part in found.split(n_prompt)]
    for row, prompt in enumerate(prompts.split(n_prompt)):
        assert prompt.keys_values["0"][0].shape[1:] == (1, 9), "one vector per token, not keys and values of every head"
        cache.write_rows(row, prompt, 1)
    for step in range(9):
        positions = torch.tensor(n_prompt) + step
        one_each = replace(PackedSequences.from_lengths((1, 1)), positions=positions)
        one_each = replace(one_each, cache=cache.begin_step(positions, int(positions.max()) + 1))
        out = attend(torch.stack([x[n + step] for x, n in zip(sequences, n_prompt, strict=True)]), one_each)
        for row, values in zip(rows, out, strict=True):
            row.append(values)
    whole = attend(torch.cat(sequences), PackedSequences.from_lengths(lengths)).split(lengths)
    for row, expected in zip(rows, whole, strict=True):
        torch.testing.assert_close(torch.stack(row), expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
