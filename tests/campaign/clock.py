"""Setting the time of day of a process while it runs."""

from __future__ import annotations

import os

_JUMPING = """
import time
def jumping(real, unit):
    def now():
        try:
            with open({path!r}) as file:
                return real() + unit(float(file.read()))
        except OSError:
            return real()
    return now
time.time = jumping(time.time, float)
time.time_ns = jumping(time.time_ns, lambda seconds: int(seconds * 1e9))
"""


class DayTime:
    """
    A process's time of day.

    :param directory: a directory that nothing else uses.
    :ivar before: Python that the process runs before anything else.
    """

    def __init__(self, directory):
        self._path = os.path.join(directory, "offset")
        self.before = _JUMPING.format(path=self._path)

    def set(self, offset):
        """Set it ``offset`` seconds ahead of the true time from now on. It also applies to processes that start later."""
        with open(f"{self._path}.new", "w") as file:
            file.write(str(offset))
        os.replace(f"{self._path}.new", self._path)
