"""vLLM as inference server: the driver in the trainer, and the plugin inside vLLM that receives weights."""

__version__ = "0.1.0"
