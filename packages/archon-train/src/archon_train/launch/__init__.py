"""Starts and watches the processes of a run, and reports which one failed first.

``local`` runs in the launcher, the process that the user started; ``rank`` runs in the processes that it starts.
"""
