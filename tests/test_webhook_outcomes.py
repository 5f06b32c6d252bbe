"""What an attempt's result means, without a reactor."""

from random import Random

from twisted.trial.unittest import SynchronousTestCase

from mqhooks.delivery import Delivery
from mqhooks.webhook.outcomes import DEAD, PARK, Outcomes
from mqhooks.webhook.settings import RetrySettings
from tests.webhooks import respond

NOW = 1_000_000.0


def judge(outcomes, deliveries, result):
    return outcomes.failed(deliveries, result, NOW, 0, lambda _: True)


class OutcomeTests(SynchronousTestCase):
    def test_backoff_is_that_of_the_deliveries_that_are_tried_again(self):
        outcomes = Outcomes(RetrySettings(jitter=0, max_attempts=6), 10, Random(0))
        tired, fresh = (Delivery(name, name, 0, b"", accepted=int(NOW * 1000)) for name in ("tired", "fresh"))
        tired.attempts = 5
        outcome = judge(outcomes, [tired, fresh], respond(500))
        self.assertEqual((outcome.fates, outcome.delay), ([DEAD, PARK], 1))

    def test_retry_after_holds_when_the_probe_itself_has_died_of_age(self):
        for headers, wait in (((), 0), ([(b"Retry-After", b"600")], 600)):
            outcomes = Outcomes(RetrySettings(), 10, Random(0))
            outcomes.breaker.trip()
            outcome = judge(outcomes, [Delivery("old", "c", 0, b"")], respond(503, headers))
            self.assertEqual((outcome.fates, outcome.probe), ([DEAD], wait))
