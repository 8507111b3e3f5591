"""``archon new`` as users type it."""

from __future__ import annotations

import json

import pytest

from archon_core.cli.main import main


def archon(capsys, *arguments):
    """Exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    out, err = capsys.readouterr()
    return exit_.value.code, out, err


@pytest.mark.parametrize("kind", ["schedule", "reward", "algorithm"])
def test_a_package_is_written_and_the_next_commands_are_printed(tmp_path, capsys, kind):
    code, out, _ = archon(capsys, "new", kind, "my-own", "--dir", str(tmp_path / "some where"))
    assert code == 0
    folder = tmp_path / "some where" / "my-own"
    assert out.splitlines()[-3:] == [f"  cd '{folder}'", '  python -m pip install -e ".[test]"', "  pytest"]
    assert (folder / f"src/my_own/{kind}.py").is_file()
    assert (folder / f"tests/test_{kind}.py").is_file()
    code, _, err = archon(capsys, "new", kind, "my-own", "--dir", str(tmp_path / "some where"))
    assert code == 2
    assert "never overwritten" in err


def test_without_a_source_a_model_is_a_small_llama(tmp_path, capsys):
    code, out, err = archon(capsys, "new", "model", "my-own", "--dir", str(tmp_path))
    assert code == 0
    assert "a model package for model type llama" in out
    assert "gap" not in err
    assert 'model_types=("llama",)' in (tmp_path / "my-own/src/my_own/plugin.py").read_text()


def test_gaps_are_printed(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bitnet"}))
    code, _, err = archon(capsys, "new", "model", "my-own", "--from-hf", str(tmp_path), "--dir", str(tmp_path))
    assert code == 0
    assert "gap: attention: attention holds attn_sub_norm.weight" in err
    assert "incomplete: " in err


def test_bad_input_is_an_error_without_a_traceback(tmp_path, capsys):
    for arguments, message in (
        (("model", "Bad Name"), "use 'bad-name'"),
        (("model", "my-own", "--from-hf", str(tmp_path / "none")), "found no such folder"),
        (("schedule", "json"), "standard library"),
    ):
        code, _, err = archon(capsys, "new", *arguments, "--dir", str(tmp_path))
        assert code == 2
        assert message in err
        assert "Traceback" not in err
    assert not list(tmp_path.iterdir())
