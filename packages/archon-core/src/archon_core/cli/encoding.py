"""Uses UTF-8 for arguments, file names and standard streams, regardless of the locale."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from archon_core.errors import ConfigError

RESTARTED = "ARCHON_UTF8_RESTART"
"""Environment variable that prevents a second restart of the process."""


def ensure_utf8() -> None:
    """Restart the process in Python's UTF-8 mode if its file system encoding is ASCII; else make its streams tolerant.

    With ASCII, arguments arrive as undecoded bytes, and files with other characters in their names cannot be opened.
    Python avoids this in the C locale unless PYTHONUTF8=0 or PYTHONCOERCECLOCALE=0 disables it.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii" and RESTARTED not in os.environ:
        environment = {**os.environ, "PYTHONUTF8": "1", RESTARTED: "1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    for stream in (sys.stdout, sys.stderr):
        print_any_text(stream)


def print_any_text(stream: TextIO) -> None:
    """Let ``stream`` escape characters that its encoding lacks: output must not end a run with an error."""
    encoding = getattr(stream, "encoding", None)
    if encoding and hasattr(stream, "reconfigure") and codecs.lookup(encoding).name != "utf-8":
        stream.reconfigure(errors="backslashreplace")


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise ConfigError for an argument with bytes that are invalid in the encoding of the process."""
    for argument in arguments:
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"argument {argument!r}: found bytes that are not {sys.getfilesystemencoding().upper()}; allowed is "
                "text; write it in the encoding of your locale, or rename the file"
            ) from error
