"""Advice for transformers models that this package cannot run."""

ADVICE = (
    "use a model package that serves it, or write one: archon new model NAME (pip install archon-scaffold) creates it "
    "as a small Llama, with a PORTING.md that says how to go on"
)
"""Without ``--from-hf``, which supports Llama-like decoders only: most refused models are not."""
