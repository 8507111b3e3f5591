"""The receiving ends of the transports ``disk`` and ``ipc``; the others are in ``archon_core.receiving``."""
