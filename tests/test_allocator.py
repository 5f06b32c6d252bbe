"""What is freed goes back to the system."""

import ctypes
import os
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

SCRIPT = """
from mqhooks.allocator import return_large_blocks

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096

{call}
before = resident()
for _ in range(3):
    # What stays lies behind what goes, where the heap ends.
    blocks = [b"x" * (8 << 20) for _ in range(4)]
    kept = b"x" * 100_000
    blocks.clear()
print(resident() - before)
"""


class AllocatorTests(SynchronousTestCase):
    if not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallopt"):
        skip = "not the GNU C library"

    def growth(self, call):
        command = [sys.executable, "-c", SCRIPT.format(call=call)]
        # As after a long frame. Newer versions of the library don't raise their threshold in so short a run.
        environment = {**os.environ, "GLIBC_TUNABLES": f"glibc.malloc.mmap_threshold={32 << 20}"}
        return int(subprocess.run(command, check=True, capture_output=True, timeout=60, env=environment).stdout)

    def test_large_blocks_are_given_back(self):
        self.assertGreater(self.growth("pass"), 8 << 20)
        self.assertLess(self.growth("return_large_blocks()"), 2 << 20)
