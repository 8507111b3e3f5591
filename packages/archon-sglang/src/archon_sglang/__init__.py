"""SGLang as inference server: the driver in the trainer."""

__version__ = "0.1.0"
