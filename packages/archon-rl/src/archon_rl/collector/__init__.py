"""The collector: samples groups of completions for asynchronous training, in a process beside the trainer."""
