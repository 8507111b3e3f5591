"""Environment variables of a server's process. Imports nothing heavy: the trainer's side sets them."""

PARENT = "ARCHON_SERVER_PARENT"
"""Id of the process that started the server, and without which it must not live on."""
