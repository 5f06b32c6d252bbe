"""
The tests. Run them with ``make test``, or some of them with ``python -m twisted.trial tests.test_x``.
"""

from hypothesis import settings

# How long an example takes depends on the machine, not on the code: nothing fails for being slow.
settings.register_profile("mqhooks", deadline=None)
settings.load_profile("mqhooks")
