"""Registries of inference servers: memory, folder, static, dns."""
