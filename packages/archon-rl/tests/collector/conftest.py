"""Makes ``virtual_time`` importable: pytest does not put test folders on the path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # behind the package's own tests, which have a ``conftest`` too
