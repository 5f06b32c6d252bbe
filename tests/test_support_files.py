"""Reading files that an operator names."""

import os
from errno import EFBIG
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mqhooks.support.files import LIMIT, read_bounded


class ReadBoundedTests(SynchronousTestCase):
    def test_what_fits_is_read_and_what_is_longer_is_not_cut(self):
        path = Path(self.mktemp())
        path.write_bytes(b"x" * LIMIT)
        self.assertEqual(len(read_bounded(str(path))), LIMIT)
        with path.open("ab") as file:
            file.write(b"x")
        error = self.assertRaises(OSError, read_bounded, str(path))
        self.assertEqual((error.errno, error.strerror), (EFBIG, f"it has more than {LIMIT} bytes"))

    def test_fifos_and_devices(self):
        fifo = self.mktemp()
        os.mkfifo(fifo)
        self.assertEqual(read_bounded(fifo), b"")
        self.assertEqual(len(read_bounded("/dev/zero")), LIMIT)
