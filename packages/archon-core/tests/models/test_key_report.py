from __future__ import annotations

from archon_core.models.key_report import compare_keys, summarise_names
from archon_core.models.weight_map import Drop, Rename, Tie, WeightMap

LAYERS = 40
WEIGHTS = WeightMap(
    (
        Rename("embed", "embed"),
        Rename("layers.{i}.w", "layers.{i}.weight"),
        Rename("score", "score", init_if_missing=True),
        Tie("head", to="embed", hf="lm_head"),
        Drop("layers.{i}.inv_freq"),
    )
).resolve({"embed": (5, 2), "score": (1, 2), **{f"layers.{i}.weight": (3,) for i in range(LAYERS)}})
EXACT = {"embed": (5, 2), "score": (1, 2), **{f"layers.{i}.w": (3,) for i in range(LAYERS)}}


def test_exactly_the_expected_tensors_fit() -> None:
    report = compare_keys(WEIGHTS, EXACT)
    assert report.fits
    assert report.lines() == []


def test_dropped_and_copied_tensors_are_not_unexpected() -> None:
    assert compare_keys(WEIGHTS, {**EXACT, "lm_head": (5, 2), "layers.3.inv_freq": (9,)}).fits


def test_a_tensor_that_may_be_missing_is_initialised_instead() -> None:
    report = compare_keys(WEIGHTS, {name: shape for name, shape in EXACT.items() if name != "score"})
    assert report.fits
    assert report.initialised == ("score",)


def test_missing_unexpected_and_misshapen_tensors_are_each_listed() -> None:
    found = {**EXACT, "lm_head": (4, 2), "layers.0.w": (4,), "layers.0.norm": (1,)}
    del found["layers.7.w"]
    report = compare_keys(WEIGHTS, found)
    assert not report.fits
    assert report.missing == ("layers.7.w",)
    assert report.unexpected == ("layers.0.norm",)
    assert report.misshapen == {"layers.0.w": ((4,), (3,)), "lm_head": ((4, 2), (5, 2))}
    text = "\n".join(report.lines())
    assert "layers.0.w: found (4,), expected (3,)" in text


def test_hundreds_of_wrong_keys_take_a_few_lines() -> None:
    found = {f"model.{name}": shape for name, shape in EXACT.items()}
    lines = compare_keys(WEIGHTS, found).lines()
    assert len(lines) == 5
    assert "missing     layers.*.w (40: 0 to 39)" in lines


def test_names_with_several_numbers_show_each_range() -> None:
    names = [f"layers.{i}.experts.{j}.w" for i in range(2) for j in range(3)]
    assert summarise_names([*names, "w1.norm"]) == ["layers.*.experts.*.w (6: 0 to 1, 0 to 2)", "w1.norm"]
