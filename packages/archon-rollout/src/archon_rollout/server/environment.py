"""Environment variables of a server's process. Imports nothing heavy: the trainer's side sets them."""

TOKEN = "ARCHON_SERVER_TOKEN"
"""The token that requests must carry. Other users can read a command line, but not this."""

PARENT = "ARCHON_SERVER_PARENT"
"""Id of the process that started the server, and without which it must not live on."""
