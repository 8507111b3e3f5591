import pytest
import torch

from archon_core.contracts.packed import AttentionSettings, PackedSequences
from archon_engine.nn.attention import PackedAttention
from archon_rollout import kv_cache
from archon_rollout.kv_cache import DecodeCache, PromptCache

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
    cache.write_rows(len(reference.rows), {layer: tuple(prompt[layer][1:]) for layer in LAYERS}, copies)
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
        assert all(torch.equal(kept[layer][i], prompt[layer][i + 1]) for layer in LAYERS for i in range(2))
