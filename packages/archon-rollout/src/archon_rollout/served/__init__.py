"""``rollout.backend=served:d2``: the trainer's side of our own servers.

``driver`` calls a server, ``launching`` starts and ends processes, ``engine`` is the inference engine of trainers.
"""
