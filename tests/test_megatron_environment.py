"""Which failures of pip mean that Megatron-Core is unavailable, and which are errors."""

import subprocess
import sys
from pathlib import Path

import pytest

import megatron_environment
from megatron_environment import UNAVAILABLE, install

NO_INDEX = """\
WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection broken by
'NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f>: Failed to establish a new
connection: [Errno 111] Connection refused')': /simple/megatron-core/
ERROR: Could not find a version that satisfies the requirement megatron-core==0.15.0 (from versions: none)
ERROR: No matching distribution found for megatron-core==0.15.0
"""
NO_FILE = (
    "ERROR: HTTP error 503 while getting https://files.example/megatron_core-0.15.0.whl (from https://index.example)"
)
LOST = (
    "ERROR: Could not install packages due to an OSError: HTTPSConnectionPool(host='files.example', port=443): Max "
    "retries exceeded with url: /megatron_core-0.15.0.whl (Caused by ReadTimeoutError('Read timed out.'))"
)
OTHER_VERSIONS = """\
ERROR: Could not find a version that satisfies the requirement megatron-core==0.15.0 (from versions: 0.1.0, 0.14.0)
ERROR: No matching distribution found for megatron-core==0.15.0
"""
CONFLICT = """\
ERROR: Cannot install megatron-core==0.15.0 because these package versions have conflicting dependencies.
The conflict is caused by:
    The user requested megatron-core==0.15.0
    The user requested (constraint) megatron-core==0.12.0
ERROR: ResolutionImpossible: for help visit the documentation of pip
"""
CRASH = 'Traceback (most recent call last):\n  File "pip/__main__.py", line 24\nAssertionError'
DISK = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        (NO_INDEX, UNAVAILABLE),
        (NO_FILE, UNAVAILABLE),
        (LOST, UNAVAILABLE),
        (OTHER_VERSIONS, 1),
        (CONFLICT, 1),
        (CRASH, 1),
        (DISK, 1),
        ("", 1),
    ],
    ids=["no-index", "no-file", "lost", "other-versions", "conflict", "crash", "disk", "silent"],
)
def test_only_a_missing_index_or_package_is_unavailable(errors, expected, monkeypatch, capsys):
    done = subprocess.CompletedProcess([], returncode=2, stdout="", stderr=errors)
    monkeypatch.setattr(megatron_environment.subprocess, "run", lambda *_, **__: done)
    assert install(Path(sys.executable)) == expected
    assert errors.strip() in capsys.readouterr().err
