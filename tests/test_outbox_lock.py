"""Who may use an outbox."""

import errno
import fcntl
import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mqhooks.errors import OutboxError
from mqhooks.outbox.lock import Lock


class LockTests(SynchronousTestCase):
    def setUp(self):
        directory = Path(self.mktemp()).resolve()
        directory.mkdir()
        self.path = str(directory / "outbox")
        self.file = Path(f"{self.path}.lock")

    def take(self):
        lock = Lock(self.path)
        lock.take()
        self.addCleanup(lock.release)
        return lock

    def refused(self, words):
        lock = Lock(self.path)
        self.addCleanup(lock.release)
        error = self.assertRaises(OutboxError, lock.take)
        self.assertIn(words, str(error))
        self.assertNotIn("\n", str(error))

    def test_one_at_a_time(self):
        lock = self.take()
        self.refused(f"{self.path}: is in use by process {os.getpid()}; stop that one")
        lock.release()
        self.assertTrue(self.take().known)

    def test_what_it_says(self):
        lock = self.take()
        self.assertEqual((lock.known, lock.used, lock.damaged), (False, False, False))
        lock.note_use()
        lock.note_damage()
        lock.release()
        lock = self.take()
        self.assertEqual((lock.known, lock.used, lock.damaged), (True, True, True))
        lock.note_use()
        lock.release()
        lock = self.take()
        self.assertEqual((lock.known, lock.used, lock.damaged), (True, True, False))

    def test_symbolic_link_is_not_followed(self):
        target = Path(f"{self.path}.target")
        target.write_text("mine")
        self.file.symlink_to(target)
        self.refused("is a symbolic link")
        self.assertEqual(target.read_text(), "mine")

    def test_hard_link_lets_nobody_in(self):
        self.take().release()
        other = f"{self.path}.other"
        os.link(self.file, other)
        self.refused("has another name, a hard link")
        os.unlink(other)
        self.take()

    def test_fifo_does_not_hang(self):
        os.mkfifo(self.file)
        self.refused("is not a regular file")

    def test_directory(self):
        self.file.mkdir()
        self.refused("cannot be written: Is a directory")

    def test_no_directory(self):
        self.path = "/nowhere/outbox"
        self.refused("cannot be written: No such file or directory; its directory has to exist")

    def test_withdrawn_leaves_nothing_where_nothing_was(self):
        self.take().withdraw()
        self.assertFalse(self.file.exists())
        self.take().release()
        self.take().withdraw()
        self.assertTrue(self.file.exists())

    def test_lock_on_a_file_whose_name_is_gone_is_taken_anew(self):
        first = self.take()
        opened, locks = [], []
        flock = fcntl.flock

        def late(descriptor, how):
            # The one that has it withdraws between the opening of its file and the lock on it.
            if not opened:
                opened.append(descriptor)
                first.withdraw()
            flock(descriptor, how)
            locks.append(descriptor)

        self.patch(fcntl, "flock", late)
        second = self.take()
        self.patch(fcntl, "flock", flock)
        self.assertEqual(len(locks), 2)
        self.refused("is in use by process")
        second.release()

    def test_lock_that_cannot_be_taken_is_nobodys(self):
        def failing(module, name, number):
            def fail(*_):
                raise OSError(number, os.strerror(number))

            return self.patch(module, name, fail)

        self.file.write_text("7\nused\n")
        for module, name in ((fcntl, "flock"), (os, "fstat"), (os, "lstat"), (os, "pread")):
            for number in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO, errno.EPERM):
                patch = failing(module, name, number)
                self.refused(f"{self.file}: cannot be locked: {os.strerror(number)}; put outbox.path on a local disk")
                patch.restore()
        for number in (errno.EWOULDBLOCK, errno.EACCES):
            patch = failing(fcntl, "flock", number)
            self.refused(f"{self.path}: is in use by process 7; stop that one")
            patch.restore()
        self.assertTrue(self.take().used)

    def test_name_that_leads_elsewhere_each_time(self):
        flock = fcntl.flock

        def replaced(descriptor, how):
            flock(descriptor, how)
            self.file.unlink()
            self.file.write_text("")

        self.patch(fcntl, "flock", replaced)
        self.refused("keeps being removed")
