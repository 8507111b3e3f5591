"""The command line in a locale without UTF-8."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from archon_core.cli.encoding import check_arguments, print_any_text
from archon_core.errors import ConfigError

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def archon(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "archon_core.cli", *arguments], env={**os.environ, **environment}, capture_output=True
    )


def test_arguments_are_utf_8_where_python_reads_them_as_ascii():
    done = archon("train", "café.yaml", **ASCII)
    assert done.returncode == 2
    assert "café.yaml" in done.stderr.decode("utf-8")
    assert b"Traceback" not in done.stderr


def test_a_terminal_that_lacks_a_letter_gets_its_code():
    done = archon("train", "café.yaml", PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert rb"caf\xe9.yaml" in done.stderr


def test_a_stream_of_another_encoding_writes_any_letter():
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="latin-1")
    print_any_text(stream)
    print("é €", file=stream, flush=True)
    assert buffer.getvalue() == b"\xe9 \\u20ac\n"


def test_an_argument_of_undecoded_bytes_is_named():
    with pytest.raises(ConfigError, match=r"argument 'caf\\udce9': found bytes that are not UTF-8"):
        check_arguments(["train", os.fsdecode(b"caf\xe9")])
