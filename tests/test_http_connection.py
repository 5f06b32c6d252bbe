"""One connection: any bytes in any pieces."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.delivery import Response
from mqhooks.errors import ConnectFailed, ConnectionBroken
from mqhooks.http.connection import Exchange, HTTPConnection, read_head

REQUEST = b"POST /hook HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}"


class Channel:
    """Notes what a connection does with it."""

    full = False

    def __init__(self):
        self.sent = []
        self.events = []

    def send(self, data):
        self.sent.append(data)

    def pending(self):
        return False

    def hurry(self):
        self.events.append("hurry")

    def close(self):
        self.events.append("close")

    def abort(self):
        self.events.append("abort")


class Owner:
    """Notes what a connection reports."""

    def __init__(self):
        self.events = []
        self.known = {}

    def ended(self, exchange, result):
        self.events.append("ended")
        exchange.done(result)

    def answered(self, connection, exchange, response):
        self.events.append("answered")
        exchange.done(response)

    def unfit(self, connection):
        self.events.append("unfit")

    def lost(self, connection, reason):
        self.events.append("lost")

    def resend(self, exchange):
        self.events.append("resend")


class ConnectionTests(SynchronousTestCase):
    def begin(self):
        self.owner, self.channel = Owner(), Channel()
        self.connection = HTTPConnection(self.owner, self.channel, 0.0)
        return self.ask()

    def ask(self):
        results = []
        self.connection.start(Exchange(REQUEST, results.append, 0.0))
        return results

    def exchange(self, pieces):
        results = self.begin()
        for piece in pieces:
            self.connection.received(piece)
        return results

    @settings(deadline=None)
    @given(st.lists(st.integers(0, 200), max_size=10))
    def test_any_chunking_gives_the_same_answer(self, cuts):
        stream = b"HTTP/1.1 201 Created\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
        cuts = sorted(min(cut, len(stream)) for cut in cuts)
        pieces = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        results = self.exchange([piece for piece in pieces if piece])
        headers = [(b"X", b"y"), (b"Transfer-Encoding", b"chunked")]
        self.assertEqual(results, [Response(201, headers, b"hello world", 11, complete=True)])
        self.assertEqual(self.owner.events, ["answered"])

    @settings(deadline=None)
    @given(st.lists(st.binary(min_size=1), max_size=5))
    def test_random_bytes_never_escape(self, pieces):
        results = self.exchange([b"HTTP/1.1 ", *pieces])
        self.connection.lost("gone")
        self.assertEqual(len(results), 1)
        self.assertIsNone(self.connection.exchange)

    @settings(deadline=None)
    @given(st.binary(max_size=100), st.sampled_from([b"\n", b"\r\n"]))
    def test_head_is_read_whatever_its_lines(self, noise, end):
        status, _, rest = read_head(b"HTTP/1.1 503 No" + end + noise.replace(b"\n", b"") + end + end + b"body")
        self.assertEqual(status, 503)
        self.assertTrue(rest == [] or rest[0].endswith(b"body"))

    def test_folded_headers(self):
        raw = b"HTTP/1.1 200 OK\r\nA: b\r\n  c\r\n\td\r\nB : e\r\nno header\r\nC:\r\n\r\n"
        self.assertEqual(read_head(raw), (200, [(b"A", b"b c d"), (b"B", b"e"), (b"C", b"")], []))

    def test_equal_answers_are_parsed_once(self):
        raw = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        self.exchange([raw])
        results = self.ask()
        self.connection.received(raw)
        self.assertIs(results[0], self.owner.known[raw])
        self.assertEqual(self.owner.events, ["answered"] * 2)

    def test_answer_that_ends_its_connection_is_not_remembered(self):
        self.exchange([b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"])
        self.assertEqual((self.owner.known, self.owner.events, self.channel.events), ({}, ["ended"], ["abort"]))

    def test_part_of_an_answer_is_acknowledged_at_once(self):
        self.exchange([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"])
        self.assertEqual(self.channel.events, ["hurry"])
        self.connection.received(b"ok")
        self.assertEqual(self.channel.events, ["hurry"])

    def test_refused_channel_has_carried_nothing(self):
        results = self.begin()
        self.connection.lost("the certificate is not for h", refused=True)
        self.assertIsInstance(results[0], ConnectFailed)
        results = self.exchange([b"HTTP"])
        self.connection.lost("something else", refused=True)
        self.assertIsInstance(results[0], ConnectionBroken)
