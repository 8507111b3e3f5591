"""What to do about a model that transformers has and this package cannot run."""

ADVICE = (
    "use a model package that serves it, or write one: archon new model NAME (pip install archon-scaffold) begins it "
    "as a small Llama, with a PORTING.md that says how to go on"
)
"""Without ``--from-hf``, which reads decoders of the Llama line: most of what is refused here is none."""
