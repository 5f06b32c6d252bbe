"""An endpoint that is down, and deliveries that fail."""

from twisted.trial.unittest import SynchronousTestCase

from mqhooks.delivery import Delivery
from mqhooks.errors import ConnectFailed, DeliveryTimeout
from mqhooks.webhook.breaker import IN_A_ROW, Breaker


def delivery(number):
    return Delivery(str(number), f"c{number}", 0, b"")


class BreakerTests(SynchronousTestCase):
    def test_no_connection_is_down_at_once(self):
        breaker = Breaker(8)
        self.assertTrue(breaker.failed(delivery(1), ConnectFailed("refused")))
        self.assertEqual((breaker.down, breaker.limit), (True, 0))

    def test_many_different_deliveries_in_a_row(self):
        breaker = Breaker(8)
        results = [breaker.failed(delivery(number), DeliveryTimeout("late")) for number in range(IN_A_ROW)]
        self.assertEqual(results, [False] * (IN_A_ROW - 1) + [True])

    def test_one_delivery_that_fails_again_and_again(self):
        breaker = Breaker(8)
        self.assertFalse(any(breaker.failed(delivery(1), DeliveryTimeout("late")) for _ in range(100)))

    def test_a_success_in_between(self):
        breaker = Breaker(8)
        for number in range(100):
            self.assertFalse(breaker.failed(delivery(number), DeliveryTimeout("late")))
            self.assertFalse(breaker.well)
            if number % 5 == 0:
                self.assertFalse(breaker.succeeded())
                self.assertTrue(breaker.well)

    def test_probes_and_a_slow_start(self):
        breaker = Breaker(10)
        breaker.failed(delivery(1), ConnectFailed("refused"))
        for number in range(1, 4):
            breaker.probe()
            self.assertEqual((breaker.limit, breaker.probes), (1, number))
            self.assertTrue(breaker.failed(delivery(1), DeliveryTimeout("late")))
        breaker.probe()
        limits = []
        self.assertTrue(breaker.succeeded())
        for _ in range(5):
            limits.append(breaker.limit)
            self.assertFalse(breaker.succeeded())
        self.assertEqual(limits, [2, 4, 8, 10, 10])
        self.assertEqual(breaker.probes, 0)
