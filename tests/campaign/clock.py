"""The time of day of a process, which can be set to another one while it runs."""

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

    :param directory: of its own.
    :ivar before: Python that the process runs before anything else.
    """

    def __init__(self, directory):
        self._path = os.path.join(directory, "offset")
        self.before = _JUMPING.format(path=self._path)

    def set(self, offset):
        """Have it be so many seconds ahead of the time it really is, from now on; a process that stopped starts with that."""
        with open(f"{self._path}.new", "w") as file:
            file.write(str(offset))
        os.replace(f"{self._path}.new", self._path)
