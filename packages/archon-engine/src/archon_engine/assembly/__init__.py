"""From a configuration to a sharded module with weights."""
