"""Which partition has which client."""

from collections import Counter

from twisted.trial.unittest import SynchronousTestCase

from mqhooks.outbox.jetstream.layout import partition_of


class PartitionTests(SynchronousTestCase):
    def test_names_that_differ_in_a_number_are_spread(self):
        for form in ("client-0-{}-0", "sensor-{}", "client-{:06}", "site/7/device{:04}", "{:x}"):
            for number in (24, 100, 1000):
                for partitions in (2, 4, 16):
                    found = Counter(partition_of(form.format(each), partitions) for each in range(number))
                    self.assertTrue(set(found) <= set(range(partitions)))
                    fair = number / partitions
                    # Five standard deviations of a fair draw, and one.
                    self.assertLessEqual(max(found.values()), fair + 5 * fair**0.5 + 1, (form, number, partitions))

    def test_stays_the_same(self):
        clients = ["", "client-1", "mount\0client-1", "Gerät", "\ud800"]
        self.assertEqual([partition_of(client, 16) for client in clients], WRITTEN)


WRITTEN = [0, 8, 15, 6, 11]
"""What streams that are there were made with: it may never change."""
