"""``archon doctor --cluster``: what a run on many ranks assumes about their machines, checked on all of them.

``facts``, ``clocks``, ``shared_folder`` and ``links`` each measure one thing on a rank, and have a pure function that
compares the ranks and names the ones that differ. torch is imported in functions that exchange something.
"""
