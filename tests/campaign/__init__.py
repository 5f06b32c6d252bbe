"""
The fault campaign: the bridge as a process, and everything that may go wrong around it.

``python -m tests.campaign`` runs the long form; ``tests.test_faults`` runs each scenario once, small.
"""
