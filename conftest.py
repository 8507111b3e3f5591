"""What holds for the tests of all packages: nothing is judged by the time that it takes, no single example either."""

from hypothesis import settings

settings.register_profile("archon", deadline=None)
settings.load_profile("archon")
