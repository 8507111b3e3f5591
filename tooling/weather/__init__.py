"""A storm over inference servers: seeded faults on real processes, and the checks that training survived them."""
