"""
The fault campaign: the bridge as a process, and the faults that may happen around it.

``python -m tests.campaign`` runs the long form; ``tests.test_faults`` runs each scenario once, in a short form.
"""
