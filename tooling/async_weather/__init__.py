"""A storm over asynchronous training: collector, trainer and servers are killed, and the run resumes."""
