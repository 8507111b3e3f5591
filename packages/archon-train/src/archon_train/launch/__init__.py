"""Starting the processes of a run, watching them, and saying which one failed first.

``local`` runs in the process that the user started; ``rank`` runs in the processes that it starts.
"""
