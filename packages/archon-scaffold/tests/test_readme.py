"""What the README says of families holds."""

import re
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
WITHOUT_A_GAP = re.findall(r"`(\w+)`", "".join(line for line in README.splitlines() if line.startswith("> ")))


def test_the_readme_lists_families():
    assert len(WITHOUT_A_GAP) > 20
    assert sorted(WITHOUT_A_GAP) == WITHOUT_A_GAP


@pytest.mark.parametrize("model_type", WITHOUT_A_GAP)
def test_a_family_that_is_listed_has_no_gap(write, model_type):
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    # transformers itself cannot build some of its default configurations without it.
    open_head_dim = getattr(CONFIG_MAPPING[model_type](), "head_dim", 0) is None
    entries = {"model_type": model_type, **({"head_dim": 128} if open_head_dim else {})}
    assert write(entries).architecture.gaps == ()
