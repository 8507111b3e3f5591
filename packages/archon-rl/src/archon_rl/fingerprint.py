"""``Fingerprint``: a digest of one of a run's inputs. It depends on content alone, not on layout, machine or paths."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

SHOWN_DIGITS = 12


@dataclass(frozen=True)
class Fingerprint:
    """The fingerprint of one input.

    Attributes:
        digest: SHA-256 of the content, in hexadecimal.
        about: description for messages.
    """

    digest: str
    about: str

    def __str__(self) -> str:
        return f"{self.about} (sha256 {self.digest[:SHOWN_DIGITS]})"

    @classmethod
    def of(cls, value: Any, about: str) -> Fingerprint:
        """The fingerprint of a value's JSON."""
        return cls(hashlib.sha256(json_bytes(value)).hexdigest(), about)


def json_bytes(value: Any) -> bytes:
    """A value as compact JSON with sorted keys. Raises for keys of mixed types and integers of thousands of digits."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_described).encode()


def _described(value: object) -> str:
    """A value that JSON has no form for, without the address that a plain repr would show."""
    return f"{type(value).__module__}.{type(value).__qualname__} " + re.sub(r" at 0x[0-9a-f]+", "", repr(value))
