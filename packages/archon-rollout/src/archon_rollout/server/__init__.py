"""``archon serve``: the local engine's generation loop behind HTTP.

``commands`` and ``serving_loop`` are the server's logic, equal on all its ranks; ``decode_thread`` runs it on the first
rank, ``follower`` on the others. ``weight_copies`` receives new weights while the loop generates. ``app`` and
``openai_app`` are the HTTP interface, ``process`` starts and ends everything.
"""
