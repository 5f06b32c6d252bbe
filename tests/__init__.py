"""
The tests. Run them with ``make test``, or some of them with ``python -m twisted.trial tests.test_x``.
"""

import os

from hypothesis import settings

# Twisted forks to start a process, and grpcio's threads must not start in the child before it becomes another program. It is
# set here because grpcio reads it when it is imported, and any test may be the first to do that.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

# An example's time depends on the machine, not on the code, so nothing fails for being slow.
settings.register_profile("mqhooks", deadline=None)
settings.load_profile("mqhooks")
