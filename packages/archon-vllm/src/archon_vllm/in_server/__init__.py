"""The part that runs inside vLLM. It needs archon-core and torch, and no other package of Archon."""
