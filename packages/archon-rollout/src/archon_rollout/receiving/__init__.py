"""The receiving end of the transport ``disk``; the others are in ``archon_core.receiving``."""
