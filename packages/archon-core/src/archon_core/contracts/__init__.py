"""What the packages promise one another, a module per topic: protocol, spec and the data that passes."""
