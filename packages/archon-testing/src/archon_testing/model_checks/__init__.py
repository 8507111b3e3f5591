"""The checks of ``ModelPluginSuite``. Each raises AssertionError with a hint for the model's author."""
