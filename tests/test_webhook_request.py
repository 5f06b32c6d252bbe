"""Deliveries become requests."""

import gzip
import json
from time import time

from standardwebhooks import Webhook
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.delivery import Delivery, Variation
from mqhooks.support.signatures import ID, SIGNATURE, TIMESTAMP
from mqhooks.webhook.request import USER_AGENT, RequestMaker
from mqhooks.webhook.settings import BatchSettings, WebhookSettings

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def maker(now=lambda: 1_800_000_000.5, **settings):
    return RequestMaker(WebhookSettings("w", "http://h/hook", (), **settings), now)


class RequestTests(SynchronousTestCase):
    def test_one_delivery(self):
        requests = maker()
        request = requests.make([Delivery("msg_1", "c", 0, b"{}")])
        self.assertIs(request.head, requests.head)
        self.assertEqual((request.head.method, request.head.url), ("POST", "http://h/hook"))
        self.assertEqual(dict(request.head.headers), {"content-type": "application/json", "user-agent": USER_AGENT})
        self.assertEqual((request.headers, request.body), ([(ID, "msg_1")], b"{}"))
        self.assertEqual((request.method, request.path), (None, None))

    def test_configured_headers_win(self):
        headers = (("Content-Type", "text/plain"), ("X-A", "1"), ("User-Agent", "mine"))
        self.assertEqual(maker(headers=headers).head.headers, headers)

    def test_signed_anew_at_each_attempt(self):
        times = iter([1_800_000_000.9, 1_800_000_100.0])
        requests = maker(lambda: next(times), secrets=(SECRET,))
        delivery = Delivery("msg_1", "c", 0, b'{"a":1}')
        first, second = (dict(requests.make([delivery]).headers) for _ in range(2))
        self.assertEqual((first[ID], first[TIMESTAMP], second[TIMESTAMP]), ("msg_1", "1800000000", "1800000100"))
        self.assertNotEqual(first[SIGNATURE], second[SIGNATURE])

    def test_variation(self):
        delivery = Delivery("msg_1", "c", 0, b"{}", variation=Variation("PUT", "/other?x=1", (("x-a", "b"),)))
        request = maker().make([delivery])
        self.assertEqual((request.method, request.path), ("PUT", "/other?x=1"))
        self.assertEqual(request.headers, [(ID, "msg_1"), ("x-a", "b")])

    def test_batch(self):
        deliveries = [Delivery(f"msg_{number}", "c", 0, b'{"n":%d}' % number) for number in range(3)]
        members = [{"n": number, "webhook_id": f"msg_{number}"} for number in range(3)]
        array = maker(batch=BatchSettings()).make(deliveries)
        self.assertEqual(json.loads(array.body), members)
        lines = maker(batch=BatchSettings(format="ndjson")).make(deliveries)
        self.assertEqual([json.loads(line) for line in lines.body.splitlines()], members)
        self.assertEqual(dict(lines.head.headers)["content-type"], "application/x-ndjson")
        ids = {dict(each.headers)[ID] for each in (array, lines)}
        self.assertEqual(len(ids), 1)
        self.assertTrue(ids.pop().startswith("batch_"))
        other = maker(batch=BatchSettings()).make(deliveries[:2])
        self.assertNotEqual(dict(other.headers)[ID], dict(array.headers)[ID])

    def test_compressed_batch_is_signed_as_it_is_before(self):
        batch = BatchSettings(compression="gzip")
        request = maker(time, batch=batch, secrets=(SECRET,)).make([Delivery("msg_1", "c", 0, b'{"n":1}')])
        self.assertEqual(dict(request.head.headers)["content-encoding"], "gzip")
        Webhook(SECRET).verify(gzip.decompress(request.body), dict(request.headers))
