import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_example_in_the_readme_runs(tiny):
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {"trainer": tiny.Trainer(tiny.Decoder())}
    exec(example, names)
    assert len(names["first"].token_ids) == len(names["second"].token_ids) == 20
    assert names["first"] != names["second"]
