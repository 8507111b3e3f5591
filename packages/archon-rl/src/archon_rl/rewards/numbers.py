"""Reading numbers out of text."""

from __future__ import annotations

import re
from decimal import Decimal

# A minus directly after a word or a closing bracket is an operator, not a sign: "12-5" ends in 5, "= -5" in -5.
_NUMBER = re.compile(r"(?:(?<![\w)\]])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


def last_number(text: str) -> Decimal | None:
    """The last number of ``text``, thousands separators removed; ``None`` when there is none.

    >>> last_number("12 clips and 1,048.50 dollars.")
    Decimal('1048.50')
    """
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None
