"""The checks behind ``ModelPluginSuite``. Each raises AssertionError with what the author of a model should look at."""
