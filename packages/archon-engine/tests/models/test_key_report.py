from __future__ import annotations

from archon_core.models.weight_map import WeightMap
from archon_core.models.weight_rules import Drop, Rename, Split, Stack, Tie
from archon_engine.models.key_report import compare_keys, form_of, summarise_names

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


STACKED = {"w.up": (3, 2, 5), "w.gate": (3, 2, 5)}
FORMS = WeightMap(
    (Stack("{expert}.up", "w.up"), Stack("{expert}.gate", "w.gate")),
    alternatives=(WeightMap((Split("fused", ("w.gate", "w.up"), dim=1),)),),
).resolve(STACKED)
ONE_BY_ONE = {f"{expert}.{kind}": (2, 5) for expert in range(3) for kind in ("up", "gate")}


def test_of_several_forms_the_one_that_a_checkpoint_has_is_taken() -> None:
    form, report = form_of(ONE_BY_ONE, FORMS)
    assert (form is FORMS, report.fits) == (True, True)
    form, report = form_of({"fused": (3, 4, 5)}, FORMS)
    assert (dict(form.hf_shapes), report.fits) == ({"fused": (3, 4, 5)}, True)


def test_a_checkpoint_that_fits_no_form_is_compared_with_the_nearest() -> None:
    form, report = form_of({"fused": (3, 6, 5)}, FORMS)
    assert list(form.hf_shapes) == ["fused"]
    assert report.lines() == ["misshapen   fused: found (3, 6, 5), expected (3, 4, 5)"]
    form, report = form_of({**ONE_BY_ONE, "3.up": (2, 5)}, FORMS)
    assert (form is FORMS, report.unexpected) == (True, ("3.up",))


def test_a_checkpoint_with_tensors_of_several_forms_fits_none() -> None:
    assert not form_of({**ONE_BY_ONE, "fused": (3, 4, 5)}, FORMS)[1].fits


def test_numbers_that_python_refuses_to_convert_are_summarised() -> None:
    huge = "9" * 5000
    assert summarise_names([f"layers.{huge}.w", "layers.12.w", "layers.3.w"]) == [f"layers.*.w (3: 3 to {huge})"]
