"""Text of the process in UTF-8, whatever the locale: arguments, file names, standard streams."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from archon_core.errors import ConfigError

RESTARTED = "ARCHON_UTF8_RESTART"
"""The environment variable that keeps a process from starting itself anew twice."""


def ensure_utf8() -> None:
    """Start the process anew in Python's UTF-8 mode when its file names are ASCII, else mend its streams.

    With ASCII, arguments arrive as undecoded bytes and no file with another letter in its name can be opened. Python
    avoids this in the C locale by itself unless PYTHONUTF8=0 or PYTHONCOERCECLOCALE=0 forbids it.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii" and RESTARTED not in os.environ:
        environment = {**os.environ, "PYTHONUTF8": "1", RESTARTED: "1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    for stream in (sys.stdout, sys.stderr):
        print_any_text(stream)


def print_any_text(stream: TextIO) -> None:
    """Let ``stream`` write ``\\u20ac`` for a letter that its encoding lacks: output must not end a run."""
    encoding = getattr(stream, "encoding", None)
    if encoding and hasattr(stream, "reconfigure") and codecs.lookup(encoding).name != "utf-8":
        stream.reconfigure(errors="backslashreplace")


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise ConfigError for an argument with bytes that the encoding of the process does not know."""
    for argument in arguments:
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"argument {argument!r}: found bytes that are not {sys.getfilesystemencoding().upper()}; allowed is "
                "text; write it in the encoding of your locale, or rename the file"
            ) from error
