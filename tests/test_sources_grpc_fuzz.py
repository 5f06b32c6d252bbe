"""Calls as bytes: cut anywhere, damaged, in any order."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.pb.on_publish_pb2 import OnPublish
from mqhooks.sources.grpc.factory import GrpcFactory
from tests.grpccalls import CHECK, Client, StoringSink, golden_calls, prefixed, request

RECORDED = [call.message for call in golden_calls()]
FRAMES = st.builds(
    lambda kind, flags, stream, body: len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body,
    st.integers(0, 12),
    st.integers(0, 255),
    st.integers(0, 9),
    st.binary(max_size=20),
)


class Stage:
    """A factory, what it logged as failures, and clients of it."""

    def __init__(self):
        self.clock = Clock()
        self.sink = StoringSink()
        self.factory = GrpcFactory(self.clock, self.sink)
        self.failures = []
        globalLogPublisher.addObserver(self.note)

    def note(self, event):
        if event.get("log_level") in (LogLevel.critical, LogLevel.error) or "log_failure" in event:
            self.failures.append(event)

    def client(self, **options):
        return Client(self.factory, self.clock, **options)

    def end(self, case):
        """Others are still served, nothing was logged as a failure, and every status 0 has its event."""
        try:
            other = self.client()
            stream = other.call(request(OnPublish(client_id="other")))
            case.assertEqual(other.answer(stream).status, 0)
            case.assertLessEqual(self.factory.counters.calls[0], self.factory.counters.events)
            case.assertEqual(self.failures, [])
        finally:
            globalLogPublisher.removeObserver(self.note)


def stream_of(messages):
    """What a client writes for some calls, from the preface on."""
    stage = Stage()
    client = stage.client(begin=False)
    client.h2.initiate_connection()
    for message in messages:
        client.call(b"", data=message, flush=False)
    client.h2.ping(b"12345678")
    globalLogPublisher.removeObserver(stage.note)
    return client.h2.data_to_send()


class SplitTests(SynchronousTestCase):
    @given(st.lists(st.sampled_from(RECORDED), min_size=1, max_size=6), st.lists(st.integers(1, 400), max_size=30))
    @settings(max_examples=60, deadline=None)
    def test_splits_change_nothing(self, messages, sizes):
        stage = Stage()
        client = stage.client(begin=False)
        data = stream_of(messages)
        for size in sizes:
            client.protocol.dataReceived(data[:size])
            data = data[size:]
            stage.clock.advance(0)
        client.protocol.dataReceived(data)
        for _ in range(10):
            stage.clock.advance(0)
        self.assertEqual(stage.factory.counters.calls[0], len(messages))
        self.assertEqual(len(stage.sink.events), len(messages))
        stage.end(self)


class DamageTests(SynchronousTestCase):
    @given(
        st.lists(st.sampled_from(RECORDED), min_size=1, max_size=4),
        st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 3), st.binary(max_size=6)), min_size=1, max_size=5),
    )
    @settings(max_examples=300, deadline=None)
    def test_damaged_bytes(self, messages, damages):
        data = bytearray(stream_of(messages))
        for place, removed, inserted in damages:
            place %= len(data) + 1
            data[place : place + removed] = inserted
        stage = Stage()
        client = stage.client(begin=False)
        client.protocol.dataReceived(bytes(data))
        self.let(stage, client)

    @given(st.lists(FRAMES, min_size=1, max_size=12), st.booleans())
    @settings(max_examples=300, deadline=None)
    def test_any_frames(self, frames, called):
        stage = Stage()
        client = stage.client()
        if called:
            client.call(None)
        client.protocol.dataReceived(b"".join(frames))
        self.let(stage, client)

    @given(st.binary(max_size=200), st.sampled_from([0, 1, 2]), st.booleans())
    @settings(max_examples=200, deadline=None)
    def test_any_messages(self, message, flag, health):
        stage = Stage()
        client = stage.client()
        path = {"path": CHECK} if health else {}
        answer = client.answer(client.call(b"", data=prefixed(message, flag), **path))
        self.assertIn(answer.status, (0, 3, 5, 12))
        raw = client.answer(client.call(b"", data=message, **path))
        self.assertIn(raw.status, (0, 3, 5, 8, 12))
        self.assertFalse(client.closed)
        stage.end(self)

    def let(self, stage, client):
        for seconds in (0, 0, 0.1, 6, 11, 3):
            stage.clock.advance(seconds)
        client.protocol.connectionLost()
        stage.clock.advance(0)
        stage.end(self)
