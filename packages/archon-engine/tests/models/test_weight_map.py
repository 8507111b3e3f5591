"""The weight map against torch's own cat, stack and slicing, for rule lists that hypothesis draws."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from archon_core.errors import WeightsError
from archon_core.models.box import Box
from archon_core.models.encoded import Encoded
from archon_core.models.name_pattern import NamePattern
from archon_core.models.weight_map import ResolvedMap, WeightMap
from archon_core.models.weight_rules import Drop, Fuse, Interleave, Rename, Split, Stack, Tie
from archon_engine.models.encodings import BlockFp8, Mxfp4
from archon_engine.models.weight_conversion import (
    assemble_hf,
    copy_from,
    fill_ours,
    read_from,
)


@dataclass
class Case:
    """A rule list, our tensors, and the Hugging Face tensors that they must equal."""

    rules: list = field(default_factory=list)
    ours: dict[str, Tensor] = field(default_factory=dict)
    hf: dict[str, Tensor] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)

    def resolve(self) -> ResolvedMap:
        return WeightMap(tuple(self.rules)).resolve({name: tuple(t.shape) for name, t in self.ours.items()})


def numbered(shape: tuple[int, ...], start: int) -> Tensor:
    """Numbers that occur nowhere else, so that a misplaced element shows."""
    return torch.arange(start, start + math.prod(shape), dtype=torch.float64).reshape(shape)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    case, start = Case(), 0
    kinds = draw(
        st.lists(
            st.sampled_from(["rename", "reorder", "interleave", "fuse", "split", "stack", "tie"]),
            min_size=1,
            max_size=5,
        )
    )
    for place, kind in enumerate(kinds):
        hf, ours = f"model.h{place}", f"o{place}"
        layers = draw(st.integers(1, 2))
        rest = draw(st.lists(st.integers(1, 3), max_size=2))
        sizes = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
        dim = draw(st.integers(0, len(rest)))
        experts = draw(st.integers(1, 3))
        equal = len(set(sizes)) == 1 and draw(st.booleans())
        names = tuple(f"p{i}" for i in range(len(sizes)))
        full = (*rest[:dim], sum(sizes), *rest[dim:])
        order = tuple(draw(st.permutations(range(len(full)))))
        if kind == "fuse":
            hf_patterns = tuple(f"{hf}.{{layer}}.{n}" for n in names)
            case.rules.append(Fuse(hf_patterns, f"{ours}.{{layer}}.w", dim, None if equal else sizes))
        elif kind == "reorder":
            case.rules.append(Rename(f"{hf}.{{layer}}.w", f"{ours}.{{layer}}.w", order=order))
        elif kind == "interleave":
            case.rules.append(
                Interleave(f"{hf}.{{layer}}.w", tuple(f"{ours}.{{layer}}.{n}" for n in names), dim, order)
            )
        elif kind == "split":
            case.rules.append(Split(f"{hf}.{{layer}}.w", tuple(f"{ours}.{{layer}}.{n}" for n in names), dim))
        elif kind == "stack":
            hf_patterns = tuple(f"{hf}.{{layer}}.{{expert}}.{n}" for n in names)
            single = len(names) == 1 and draw(st.booleans())
            case.rules.append(
                Stack(
                    hf_patterns[0] if single else hf_patterns,
                    f"{ours}.{{layer}}.w",
                    dim=dim,
                    sizes=None if equal or single else sizes,
                )
            )
        else:
            case.rules.append(Rename(f"{hf}.{{layer}}.w", f"{ours}.{{layer}}.w"))
        if kind == "tie":
            case.rules.append(Tie(f"{ours}.{{layer}}.copy", to=f"{ours}.{{layer}}.w"))
        for layer in range(layers):
            shape = (experts, *full) if kind == "stack" else full
            tensor = numbered(shape, start)
            start += tensor.numel()
            if kind == "interleave":
                # One more dim whose places are the tensors, behind ``dim``: flattening the two makes slices take turns.
                parts = [numbered(shape, start + 1000 * i) for i in range(len(names))]
                case.ours |= {f"{ours}.{layer}.{n}": part for n, part in zip(names, parts, strict=True)}
                joined = torch.stack(parts, dim + 1).flatten(dim, dim + 1)
                case.hf[f"{hf}.{layer}.w"] = joined.permute(torch.tensor(order).argsort().tolist()).contiguous()
                start += 1000 * len(names)
                continue
            if kind == "split":
                parts = tensor.split(sizes, dim)
                case.ours |= {f"{ours}.{layer}.{n}": part.clone() for n, part in zip(names, parts, strict=True)}
                case.hf[f"{hf}.{layer}.w"] = tensor
                continue
            case.ours[f"{ours}.{layer}.w"] = tensor
            if kind == "fuse":
                parts = tensor.split(sizes, dim)
                case.hf |= {f"{hf}.{layer}.{n}": part.clone() for n, part in zip(names, parts, strict=True)}
            elif kind == "stack":
                for expert in range(experts):
                    parts = tensor[expert].split(sizes, dim)
                    case.hf |= {f"{hf}.{layer}.{expert}.{n}": p.clone() for n, p in zip(names, parts, strict=True)}
            elif kind == "reorder":
                case.hf[f"{hf}.{layer}.w"] = tensor.permute(torch.tensor(order).argsort().tolist()).contiguous()
            else:
                case.hf[f"{hf}.{layer}.w"] = tensor
            if kind == "tie":
                case.ours[f"{ours}.{layer}.copy"] = tensor
                case.tied[f"{ours}.{layer}.copy"] = f"{ours}.{layer}.w"
    case.rules.append(Drop("model.rotary.{any}"))
    draw(st.randoms(use_true_random=False)).shuffle(case.rules)
    return case


@given(cases())
def test_our_tensors_become_the_hugging_face_tensors_that_torch_would_make_of_them(case: Case) -> None:
    weights = case.resolve()
    made = {name: assemble_hf(name, weights, copy_from(case.ours), case.hf[name].dtype) for name in weights.hf_shapes}
    assert made.keys() == case.hf.keys()
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, case.hf[name], rtol=0, atol=0)


@given(cases())
def test_hugging_face_tensors_become_ours_and_shapes_are_known_beforehand(case: Case) -> None:
    weights = case.resolve()
    assert weights.hf_shapes == {name: tuple(tensor.shape) for name, tensor in case.hf.items()}
    assert weights.ties == case.tied
    for name, expected in case.ours.items():
        loaded = torch.full_like(expected, torch.nan)
        fill_ours(loaded, name, Box.whole(tuple(expected.shape)), weights, read_from(case.hf))
        torch.testing.assert_close(loaded, expected, rtol=0, atol=0)


@given(cases(), st.data())
@settings(max_examples=200)
def test_a_slice_is_loaded_by_reading_its_own_elements_only(case: Case, data: st.DataObject) -> None:
    weights = case.resolve()
    name = data.draw(st.sampled_from(sorted(case.ours)))
    shape = tuple(case.ours[name].shape)
    start = tuple(data.draw(st.integers(0, extent - 1)) for extent in shape)
    box = Box(start, tuple(data.draw(st.integers(1, n - a)) for a, n in zip(start, shape, strict=True)))
    read = []

    def counting(hf_name: str, hf_box: Box) -> Tensor:
        read.append(hf_box.numel)
        return case.hf[hf_name][hf_box.slices]

    part = torch.full(box.shape, torch.nan, dtype=torch.float64)
    fill_ours(part, name, box, weights, counting)
    torch.testing.assert_close(part, case.ours[name][box.slices], rtol=0, atol=0)
    assert sum(read) == box.numel


@given(cases())
def test_every_element_of_every_tensor_is_linked_exactly_once(case: Case) -> None:
    weights = case.resolve()
    for links, shapes, box_of in (
        (weights.links_of_ours, weights.shapes, lambda link: link.our_box),
        (weights.links_of_hf, weights.hf_shapes, lambda link: link.hf_box),
    ):
        for name, shape in shapes.items():
            count = torch.zeros(shape)
            for link in links[name]:
                count[box_of(link).slices] += 1
            assert bool((count == 1).all()), name


@given(st.sampled_from(["layers.{layer}.{part}.weight", "a.{x}.b", "{x}.{y}"]), st.data())
def test_filling_a_pattern_with_what_it_matched_gives_the_name_back(text: str, data: st.DataObject) -> None:
    pattern = NamePattern(text)
    bindings = {p: data.draw(st.text("ab0_[", min_size=1)) for p in sorted(pattern.placeholders)}
    name = pattern.fill(bindings)
    assert pattern.match(name) == bindings
    assert pattern.match(name + ".more") is None


def test_a_placeholder_used_twice_must_match_the_same_text() -> None:
    assert NamePattern("a.{x}.b.{x}").match("a.1.b.1") == {"x": "1"}
    assert NamePattern("a.{x}.b.{x}").match("a.1.b.2") is None


def test_a_dropped_tensor_is_recognised_and_others_are_not() -> None:
    weights = WeightMap((Rename("a", "b"), Drop("rotary.{i}.inv_freq"))).resolve({"b": (1,)})
    assert weights.drops("rotary.3.inv_freq")
    assert not weights.drops("rotary.3.weight")


def test_dropped_subtrees_are_named_with_the_reason_of_their_rule() -> None:
    rules = (Rename("a", "b"), Drop("mtp.{rest...}", reason="not trained"), Drop("rotary.{i}.inv_freq"))
    weights = WeightMap(rules).resolve({"b": (1,)})
    found = ("a", "mtp.fc", "rotary.0.inv_freq", "mtp.layers.0.norm.weight", "mtp")
    assert weights.dropped_with_reason(found) == {"not trained": ("mtp.fc", "mtp.layers.0.norm.weight")}
    assert not weights.drops("mtp")


def test_the_order_of_hugging_face_names_is_the_order_of_our_tensors() -> None:
    rules = (Rename("z", "first"), Fuse(("b", "a"), "second"))
    assert list(WeightMap(rules).resolve({"first": (1,), "second": (2,)}).hf_shapes) == ["z", "b", "a"]


@pytest.mark.parametrize(
    ("rules", "shapes", "message"),
    [
        ((Rename("a", "x"), Rename("b", "y")), {"x": (1,)}, "covers no tensor"),
        ((Rename("a", "x"),), {"x": (1,), "y": (2, 3)}, r"'y' \(2, 3\) has no rule"),
        ((Rename("a", "x"), Rename("b", "x")), {"x": (1,)}, "'x' is claimed by"),
        ((Rename("a", "x"), Rename("a", "y")), {"x": (1,), "y": (1,)}, "Hugging Face tensor 'a' is claimed by"),
        ((Rename("a", "x"), Tie("y", to="z")), {"x": (1,), "y": (1,)}, "covers no tensor"),
        ((Rename("a", "x"), Tie("y", to="x")), {"x": (1,), "y": (2,)}, "shapes differ"),
        ((Rename("a", "x"), Rename("b", "y"), Tie("y", to="x")), {"x": (1,), "y": (1,)}, "tied to 'x'"),
        ((Rename("a", "x"), Rename("b", "y"), Tie("z", to="x", hf="b")), {"x": (1,), "y": (1,)}, "claimed twice"),
        ((Fuse(("a", "b"), "x"),), {"x": (3,)}, "does not divide into 2"),
        ((Fuse(("a", "b"), "x", sizes=(1, 1)),), {"x": (3,)}, "do not sum"),
        ((Fuse(("a", "b"), "x", dim=1),), {"x": (2,)}, "has no dim 1"),
        ((Split("a", ("x", "y")),), {"x": (2,)}, "but not y"),
        ((Split("a", ("x", "y")),), {"x": (2, 3), "y": (2, 4)}, "differ in a dim"),
        ((Stack("a.{expert}", "x"),), {"x": ()}, "no dim to stack"),
        ((Interleave("a", ("x", "y"), 0),), {"x": (2,), "y": (3,)}, "equal shapes"),
        ((Interleave("a", ("x", "y"), 1),), {"x": (2,), "y": (2,)}, "has no dim 1"),
        ((Rename("a", "x", order=(0, 0)),), {"x": (2, 3)}, "names each of its 2 dims once"),
        ((Rename("a", "x"), Encoded("b", ("c",), BlockFp8())), {"x": (2, 3)}, "covers no tensor"),
        ((Rename("a", "x"), *(Encoded("a", ("b", "c"), BlockFp8()),) * 2), {"x": (2, 3)}, "of another rule"),
        ((Rename("a", "x"), Encoded("a", ("b", "c"), BlockFp8())), {"x": (2, 3, 4)}, "only matrices"),
        ((Rename("a", "x"), Encoded("a", ("b", "c"), Mxfp4())), {"x": (2, 48)}, "a multiple of 32"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(rules: tuple, shapes: dict, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        WeightMap(rules).resolve(shapes)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(WeightsError) as refused:
        WeightMap((Rename("a", "x"), Rename("b", "gone"))).resolve({"x": (1,), "y": (1,), "z": (1,)})
    for part in ("gone", "'y'", "'z'"):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rename("a.{layer}", "b"),
        lambda: Rename("a", "b.{layer}"),
        lambda: Fuse((), "b"),
        lambda: Fuse(("a.{layer}", "b"), "c.{layer}"),
        lambda: Split("a.{i}", ("b.{i}", "c")),
        lambda: Stack("a", "b"),
        lambda: Stack("a.{expert}", "b.{expert}"),
        lambda: Tie("a.{i}", to="b"),
        lambda: Interleave("a.{i}", ("b.{i}", "c"), 0),
        lambda: Encoded("a.{i}", ("b",), Mxfp4()),
    ],
)
def test_a_rule_whose_sides_have_different_placeholders_cannot_be_made(make) -> None:
    with pytest.raises(WeightsError, match=r"placeholders|numbers the slices"):
        make()
