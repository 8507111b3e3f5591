"""Layers whose tensor ranks hold parts of unequal size, some of them empty, against the same layer on one rank: values
and gradients in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from archon_core.contracts.packed import HeadInputs
from archon_core.models.box import chunk_of
from archon_engine.nn.embedding import Embedding
from archon_engine.nn.head import LanguageModelHead
from archon_engine.nn.key_heads import HeadExchange
from archon_engine.nn.norm import ProjectionRMSNorm
from archon_engine.nn.tensor_parallel import TensorParallel
from archon_testing.worlds import run_world

RANKS = 4
T, H = 8, 6
VOCABULARIES = (4, 5, 7, 13, 16, 257)
"""Over four ranks: 1 + 1 + 1 + 1, none for the last of four (so over two and three alone), 2 + 2 + 2 + 1,
4 + 4 + 4 + 1, equal parts, 65 + 65 + 65 + 62."""

HEADS = [(8, 1), (8, 2), (8, 4), (12, 3), (12, 6), (12, 12), (24, 8)]
"""(query heads, key heads) for 2, 3 and 4 ranks where they divide the query heads."""

Found = Iterator[tuple[str, float]]


def differences(check: Callable[[TensorParallel], Found]) -> list[tuple[str, float]]:
    """(what, largest difference of this rank's part) on groups of 2, 3 and 4 ranks."""
    found: list[tuple[str, float]] = []
    for size in (2, 3, RANKS):
        group = dist.new_group(range(size))
        if dist.get_rank() < size:
            parallel = TensorParallel(group, dist.get_rank(), size)
            found += [(f"t{size}: {what}", error) for what, error in check(parallel)]
    return found


def all_differences() -> list[tuple[str, float]]:
    checks = (vocabulary_differences, exchange_differences, norm_differences)
    return [found for check in checks for found in differences(check)]


def own(x: Tensor, dim: int, parallel: TensorParallel) -> Tensor:
    """This rank's part, as its own leaf."""
    part = parallel.own_part(x.shape[dim])
    return x.detach().narrow(dim, part.start, len(part)).clone().requires_grad_()


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape, f"{tuple(found.shape)}, expected {tuple(expected.shape)}"
    return (found - expected).detach().abs().max().item() if found.numel() else 0.0


def vocabulary_differences(parallel: TensorParallel) -> Found:
    for rows in VOCABULARIES:
        if not chunk_of(rows, parallel.size, parallel.size - 1):
            continue
        torch.manual_seed(rows)
        tokens = T * parallel.size
        ids = torch.randint(0, rows, (tokens,))
        table = torch.randn(rows, H, dtype=torch.float64)
        whole, part = Embedding(rows, H), Embedding(rows, H)
        whole.weight, part.weight = torch.nn.Parameter(table), torch.nn.Parameter(own(table, 0, parallel))
        part.parallel = parallel
        upstream = torch.randn(tokens, H, dtype=torch.float64)
        expected, found = whole(ids), part(ids)
        expected.backward(upstream)
        found.backward(own(upstream, 0, parallel).detach())
        yield f"{rows} rows: embedded", error(found, own(expected, 0, parallel))
        yield f"{rows} rows: gradient of the table", error(part.weight.grad, own(whole.weight.grad, 0, parallel))
        yield from head_differences(rows, table, parallel)


def head_differences(rows: int, table: Tensor, parallel: TensorParallel) -> Found:
    tokens = T * parallel.size
    hidden = torch.randn(tokens, H, dtype=torch.float64, requires_grad=True)
    inputs = HeadInputs(
        ("logprobs", "entropy", "logits"), targets=torch.arange(tokens) * 7 % (rows + 1) - 1, temperature=0.7
    )
    whole, part = LanguageModelHead(H, rows, softcap=3.0), LanguageModelHead(H, rows, softcap=3.0)
    whole.weight, part.weight = torch.nn.Parameter(table), torch.nn.Parameter(own(table, 0, parallel))
    part.parallel = parallel
    own_hidden = own(hidden, 0, parallel)
    expected, found = whole(hidden, inputs), part(own_hidden, inputs)
    upstream = {name: torch.randn_like(x) for name, x in expected.items()}
    sum((expected[name] * upstream[name]).sum() for name in expected).backward()
    sum((found[name] * upstream[name]).sum() for name in expected).backward()
    for name in expected:
        yield f"{rows} rows: {name}", error(found[name], expected[name])
    yield f"{rows} rows: gradient of the hidden states", error(own_hidden.grad, own(hidden.grad, 0, parallel))
    yield f"{rows} rows: gradient of the head", error(part.weight.grad, own(whole.weight.grad, 0, parallel))


def exchange_differences(parallel: TensorParallel) -> Found:
    """Against the definition: query head i reads key head i // (queries / keys)."""
    for (query, key_value), head_dim in ((heads, dim) for heads in HEADS for dim in (2, 5)):
        if query % parallel.size:
            continue
        case = f"{key_value} of {query} heads of {head_dim}"
        torch.manual_seed(query + key_value)
        x = torch.randn(T, key_value * head_dim, dtype=torch.float64, requires_grad=True)
        upstream = torch.randn(T, query, head_dim, dtype=torch.float64)
        read = x.unflatten(1, (key_value, head_dim)).repeat_interleave(query // key_value, dim=1)
        read.backward(upstream)
        exchange = HeadExchange.plan(
            x.shape[1], key_value, group=parallel.group, rank=parallel.rank, size=parallel.size
        )
        own_x = own(x, 1, parallel)
        heads = exchange.apply(own_x).unflatten(1, (-1, head_dim))
        own_queries = query // parallel.size
        found = heads.repeat_interleave(own_queries // heads.shape[1], dim=1)
        found.backward(upstream.narrow(1, parallel.rank * own_queries, own_queries))
        yield f"{case}: heads", error(found, own(read, 1, parallel))
        yield f"{case}: gradient", error(own_x.grad, own(x.grad, 1, parallel))


def norm_differences(parallel: TensorParallel) -> Found:
    for size in (1, 5, 6, 12):
        torch.manual_seed(size)
        whole, part = ProjectionRMSNorm(size, 1e-6).double(), ProjectionRMSNorm(size, 1e-6).double()
        torch.nn.init.normal_(whole.weight)
        part.weight, part.parallel = torch.nn.Parameter(own(whole.weight, 0, parallel)), parallel
        x = torch.randn(T, size, dtype=torch.float64, requires_grad=True)
        upstream, own_x = torch.randn(T, size, dtype=torch.float64), own(x, 1, parallel)
        expected, found = whole(x), part(own_x)
        expected.backward(upstream)
        found.backward(own(upstream, 1, parallel).detach())
        yield f"{size} normalised", error(found, own(expected, 1, parallel))
        yield f"{size}: gradient of x", error(own_x.grad, own(x.grad, 1, parallel))
        yield f"{size}: gradient of the weight", error(part.weight.grad, own(whole.weight.grad, 0, parallel))


def test_parts_of_any_size_give_the_numbers_of_one_rank() -> None:
    ranks = run_world(all_differences, RANKS, time_limit=120)
    for found in ranks:
        assert [(what, wrong) for what, wrong in found if not wrong < 1e-12] == []
    counted = [sum(word in what for what, _ in ranks[0]) for word in ("rows", "heads of", "gradient of x")]
    assert counted == [7 * (6 + 5 + 5), 2 * 2 * (7 + 4 + 7), 4 * 3]


def compiled_gradients() -> list[float]:
    """How far the exchange in one compiled graph is from the same without compiling: values and gradient."""
    exchange = HeadExchange.plan(6, 1, group=dist.group.WORLD, rank=dist.get_rank(), size=2)

    def scaled(x: Tensor) -> Tensor:
        return exchange.apply(x * 2).sin()

    compiled = torch.compile(scaled, backend="aot_eager", fullgraph=True, dynamic=True)
    torch.manual_seed(dist.get_rank())
    errors = []
    for tokens in (4, 7):
        x = torch.randn(tokens, 3, dtype=torch.float64, requires_grad=True)
        twin, upstream = x.detach().clone().requires_grad_(), torch.randn(tokens, 6, dtype=torch.float64)
        expected, found = scaled(x), compiled(twin)
        expected.backward(upstream)
        found.backward(upstream)
        errors += [error(found, expected), error(twin.grad, x.grad)]
    return errors


def test_the_exchange_is_part_of_a_compiled_graph() -> None:
    assert run_world(compiled_gradients, 2) == [[0.0] * 4] * 2


def test_parts_are_those_of_torch_chunk() -> None:
    for extent in range(1, 40):
        for size in range(1, 10):
            chunks = [part.tolist() for part in torch.arange(extent).chunk(size)]
            parts = [list(chunk_of(extent, size, place)) for place in range(size)]
            assert parts == chunks + [[]] * (size - len(chunks))


def test_every_rank_gets_as_many_key_heads_and_those_that_its_queries_read() -> None:
    for queries, keys, size in ((8, 1, 4), (8, 2, 8), (12, 6, 4), (12, 3, 4), (64, 8, 16), (28, 4, 7)):
        plans = [HeadExchange.plan(keys * 8, keys, group=None, rank=r, size=size) for r in range(size)]
        assert len({len(plan.heads) for plan in plans}) == 1
        for sender, plan in enumerate(plans):
            for receiver, (_, count) in enumerate(plan.sent):
                assert plans[receiver].received[sender] == count
        share = queries // size
        for rank, plan in enumerate(plans):
            first = min(query * keys // queries for query in range(rank * share, (rank + 1) * share))
            read = [query * keys // queries - first for query in range(rank * share, (rank + 1) * share)]
            assert [head for head in plan.heads for _ in range(share // len(plan.heads))] == read
            assert sum(plan.received) == 8 * len(set(read))
