"""The Archon engine, composed of assembly, step, runner, optimizer and checkpoint."""
