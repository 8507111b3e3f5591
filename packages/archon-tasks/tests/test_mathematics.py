"""``math_verify``: completion and answer are compared as mathematics."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from archon_core.errors import ConfigError, DataError

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="archon-tasks[math] is not installed"
)


def reward(completion: str, answer: object) -> float:
    from archon_tasks.mathematics import math_reward

    return math_reward("", completion, {"answer": answer})


@needs_math_verify
@pytest.mark.parametrize(
    ("answer", "completion"),
    [
        (r"\frac{1}{2}", r"so it is \boxed{0.5}"),
        ("1/2", r"\boxed{\frac12}"),
        ("x^2 + 1", r"we get $1+x^2$."),
        (r"$\sqrt{8}$", r"\boxed{2\sqrt{2}}"),
        (r"\{1, 2\}", r"\boxed{\{2,1\}}"),
        ("(3, 4)", r"the point is \boxed{(3,4)}"),
        ("Half of 10 is 5.\n#### 5", "therefore 5"),
        (r"The sum is $2+3$, so \boxed{5}.", r"first 7, then \boxed{5}"),
        ("3", "$x = 3$"),
        (5, "5"),
    ],
)
def test_equal_mathematics_in_different_forms_is_right(answer, completion):
    assert reward(completion, answer) == 1.0


@needs_math_verify
@pytest.mark.parametrize(
    ("answer", "completion"),
    [("5", r"\boxed{6}"), ("5", ""), ("5", "no number"), (r"\frac{1}{2}", r"\boxed{2}"), ("(3, 4)", r"\boxed{(4,3)}")],
)
def test_other_or_no_mathematics_is_wrong(answer, completion):
    assert reward(completion, answer) == 0.0


@needs_math_verify
@pytest.mark.parametrize("answer", ["", "  ", "#### "])
def test_an_answer_without_mathematics_is_an_error_of_the_data(answer):
    with pytest.raises(DataError, match=r"found no mathematics in the answer .*data\.answer_key"):
        reward("5", answer)


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("archon_tasks.mathematics", "math_verify", "math"),
        ("archon_tasks.reasoning.reward", "reasoning_gym", "reasoning-gym"),
    ],
)
def test_a_missing_extra_is_an_error_with_the_command_that_installs_it(monkeypatch, module, package, extra):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ConfigError, match=rf"is not installed; pip install 'archon-tasks\[{extra}\]'$"):
        importlib.import_module(module)
