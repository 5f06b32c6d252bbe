"""Calls without a network: what they become, how they are answered, and what a hostile peer can do."""

from twisted.internet.defer import fail
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.pb.on_publish_pb2 import OnPublish
from mqhooks.pb.on_subscribe_pb2 import OnSubscribe
from mqhooks.sources.grpc import factory as factory_module
from mqhooks.sources.grpc.protocol import CALLS, IDLE, Call, timeout
from tests.grpccalls import CHECK, EVENT, CallsMixin, Client, golden_calls, prefixed, request


def publish(number, **fields):
    return request(OnPublish(client_id=f"c{number}", topic="t", payload=str(number).encode(), **fields))


class CountedCall(Call):
    """
    A call that counts how often it is looked at.

    :cvar looks: how often its time was read, or it was compared with another.
    """

    __slots__ = ("_began",)
    looks = 0

    @property
    def began(self):
        CountedCall.looks += 1
        return self._began

    @began.setter
    def began(self, began):
        self._began = began

    def __eq__(self, other):
        CountedCall.looks += 1
        return self is other

    __hash__ = Call.__hash__


class Connection:
    """Where calls come from, as the factory sees it; keeps the answers."""

    def __init__(self):
        self.statuses = []

    def answer(self, call, status, words):
        self.statuses.append(status)

    def flush(self):
        pass


class AnswerTests(CallsMixin, SynchronousTestCase):
    def test_recorded_calls(self):
        client = self.make()
        recorded = list(golden_calls())
        for call in recorded:
            stream = client.call(b"", data=call.message)
            answer = client.answer(stream)
            self.assertEqual((answer.status, answer.message), (0, b"\0\0\0\0\0"), call.type)
            self.assertEqual((answer.headers[":status"], answer.headers["content-type"]), ("200", "application/grpc"))
        self.assertEqual(len(self.sink.events), len(recorded))
        for event, call in zip(self.sink.events, recorded, strict=True):
            self.assertEqual(event.hook.replace("_", ""), call.type.lower().replace("_", ""))
            self.assertEqual(event.client_id, call.decoded["client_id"])
        self.assertEqual(self.counters.calls[0], len(recorded))
        self.assertEqual(self.counters.events, len(recorded))

    def test_answers_after_the_commit(self):
        client = self.make()
        self.sink.holds = True
        stream = client.call(publish(1))
        self.assertEqual(len(self.sink.events), 1)
        self.assertIsNone(client.answer(stream))
        self.sink.commit()
        client.turn()
        self.assertEqual(self.status(client, stream), 0)

    def test_calls_of_one_turn_are_one_batch(self):
        client = self.make()
        other = Client(self.factory, self.clock)
        for number in range(3):
            client.call(publish(number), flush=False)
            other.call(publish(number + 3), flush=False)
        client.protocol.dataReceived(client.h2.data_to_send())
        other.send()
        client.turn()
        self.assertEqual([len(batch) for batch in self.sink.batches], [6])

    def test_a_deadline_that_passes_before_the_commit(self):
        client = self.make()
        self.sink.holds = True
        stream = client.call(publish(1), grpc_timeout="500m")
        client.turn(0.49)
        self.assertIsNone(client.answer(stream))
        client.turn(0.02)
        self.assertEqual(self.status(client, stream), 4)
        self.sink.commit()
        client.turn()
        self.assertEqual(self.counters.calls[4], 1)
        self.assertEqual(self.counters.calls[0], 0)

    def test_no_deadline(self):
        client = self.make()
        self.sink.holds = True
        hurried, patient = client.call(publish(1), grpc_timeout="1S"), client.call(publish(2), grpc_timeout=None)
        client.turn(factory_module.COMMIT_TIME + 0.01)
        self.assertEqual((self.status(client, hurried), self.status(client, patient)), (4, 14))

    def test_thousands_of_deadlines_cost_each_the_same(self):
        many = 2000
        for apart in (0.0, 0.0001):
            self.make()
            self.sink.holds = True
            connection = Connection()
            for number in range(many):
                headers = {b":path": EVENT.encode()} | ({b"grpc-timeout": b"500m"} if number % 2 else {})
                # The last to begin comes first.
                call = CountedCall(connection, number, (many - number) * apart, headers)
                call.content, call.refusal = bytearray(prefixed(publish(number))), None
                self.factory.ended(call)
            self.clock.advance(0)
            self.assertEqual(len(self.sink.events), many)
            CountedCall.looks = 0
            for _ in range(many + 1):
                self.clock.advance(0.0001)
            self.assertEqual(connection.statuses, [])
            for _ in range(60):
                self.clock.advance(0.1)
            self.assertEqual(connection.statuses, [4] * (many // 2) + [14] * (many // 2))
            self.assertLess(CountedCall.looks, 10 * many)

    def test_nothing_is_acknowledged_that_was_not_stored(self):
        client = self.make()
        self.sink.error = OSError("no")
        raised = client.call(publish(1))
        self.sink.error, self.sink.store = None, lambda events: fail(OSError("no"))
        failed = client.call(publish(2))
        self.assertEqual((self.status(client, raised), self.status(client, failed)), (14, 14))
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 2)

    def test_a_full_sink(self):
        client = self.make()
        self.sink.full = True
        streams = [client.call(publish(number), flush=False) for number in range(3)]
        client.send()
        for stream in streams:
            answer = client.answer(stream)
            self.assertEqual((answer.status, answer.words), (8, "no room in the outbox"))
        self.assertEqual((self.counters.refused, self.counters.calls[8]), (3, 3))
        self.assertEqual(self.sink.events, [])
        self.assertFalse(client.closed)

    def test_what_is_wrong_with_a_call(self):
        client = self.make(max_frame=1000)
        for status, counted, message, changed in (
            (12, 0, publish(1), {"path": "/webhook.v1beta1.PluginService/Other"}),
            (12, 0, b"", {"path": "/grpc.health.v1.Health/Watch"}),
            (12, 0, publish(1), {"data": prefixed(publish(1), 1), "grpc_encoding": "gzip"}),
            (12, 0, request(b"\x0a\x03x/Y"), {}),
            (3, 1, b"", {}),
            (3, 1, b"\x0a\0", {}),
            (3, 1, b"\xff" * 9, {}),
            (3, 1, b"\x0a\xff\xff\xff\xff\xff\xff", {}),
            (3, 1, publish(1), {"data": prefixed(publish(1))[:-1]}),
            (3, 1, publish(1), {"data": prefixed(publish(1)) + b"x"}),
            (3, 1, publish(1), {"data": b"\0\0\0"}),
            (3, 1, publish(1), {"data": prefixed(publish(1), 2)}),
            (3, 0, publish(1), {"content_type": "text/plain"}),
            (8, 1, request(b"x" * 2000), {}),
        ):
            before = self.counters.malformed
            stream = client.call(message, **changed)
            self.assertEqual(self.status(client, stream), status, (message, changed))
            self.assertEqual(self.counters.malformed - before, counted, (message, changed))
        self.assertEqual(self.counters.unknown, 1)
        self.assertEqual(self.sink.events, [])
        self.assertEqual(self.status(client, client.call(publish(1))), 0)

    def test_an_uncompressed_message_may_name_a_compression(self):
        client = self.make()
        self.assertEqual(self.status(client, client.call(publish(1), grpc_encoding="gzip")), 0)

    def test_an_unusual_request(self):
        client = self.make()
        unusual = b"\x10\x07" + publish(1)
        self.assertEqual(self.status(client, client.call(unusual)), 0)
        self.assertEqual(self.sink.events[0].client_id, "c1")

    def test_health(self):
        client = self.make()
        service = b"\x0a\x1dwebhook.v1beta1.PluginService"
        for message in (b"", service):
            self.assertEqual(client.answer(client.call(message, path=CHECK)).message, b"\0\0\0\0\2\x08\1")
        self.assertEqual(self.status(client, client.call(b"\x0a\1x", path=CHECK)), 5)
        self.sink.full = True
        self.assertEqual(client.answer(client.call(b"", path=CHECK)).message, b"\0\0\0\0\2\x08\2")
        self.assertEqual(sum(self.counters.calls.values()), 0)

    def test_usernames_are_remembered(self):
        client = self.make()
        for call in golden_calls():
            if call.decoded.get("username") == "alice" and call.type == "OnRegister":
                client.call(b"", data=call.message)
        client.call(b"", data=next(call.message for call in golden_calls() if call.type == "OnSessionExpired"))
        self.assertEqual(self.sink.events[-1].username, "alice")

    def test_a_caller_that_leaves(self):
        client = self.make()
        self.sink.holds = True
        stream = client.call(publish(1))
        client.h2.reset_stream(stream)
        client.send()
        self.sink.commit()
        client.turn()
        self.assertEqual((self.counters.calls[1], self.counters.calls[0]), (1, 0))
        self.assertEqual(self.status(client, client.call(publish(2))), None)
        self.sink.commit()

    def test_a_call_that_ends_and_is_reset_in_one_read(self):
        client = self.make()
        stream = client.call(publish(1), flush=False)
        client.h2.reset_stream(stream)
        unknown = client.call(b"", path="/x", flush=False)
        client.h2.reset_stream(unknown)
        client.send()
        self.assertFalse(client.closed)
        self.assertEqual(len(self.sink.events), 1)
        self.assertEqual(self.status(client, client.call(publish(2))), 0)

    def test_timeouts(self):
        for text, seconds in ((b"500m", 0.5), (b"2S", 2), (b"1M", 60), (b"1H", 3600), (b"7u", 7e-6), (b"8n", 8e-9)):
            self.assertEqual(timeout(text), seconds)
        for text in (None, b"", b"m", b"1", b"-1S", b"123456789S", b"1 S"):
            self.assertIsNone(timeout(text))


class ManyTopicsTests(CallsMixin, SynchronousTestCase):
    def subscribe(self, count):
        topics = [{"topic": f"t{number}"} for number in range(count)]
        return request(OnSubscribe(client_id="c", topics=topics))

    def test_is_answered_after_the_last_piece(self):
        client = self.make()
        self.sink.holds = True
        stream = client.call(self.subscribe(3500))
        for _ in range(4):
            self.assertIsNone(client.answer(stream))
            self.assertEqual(len(self.sink.waiting), 1)
            self.sink.commit()
            client.turn()
        self.assertEqual(self.status(client, stream), 0)
        self.assertEqual([len(event.message.topics) for event in self.sink.events], [1000, 1000, 1000, 500])

    def test_the_clients_next_event_waits_behind_it(self):
        client = self.make()
        self.sink.holds = True
        first = client.call(self.subscribe(1500))
        behind = client.call(request(OnPublish(client_id="c", topic="t")))
        other = client.call(publish(1))
        self.assertEqual([event.client_id for event in self.sink.events], ["c", "c1"])
        while self.sink.waiting:
            self.sink.commit()
            client.turn()
        self.assertEqual(
            [event.hook for event in self.sink.events], ["on_subscribe", "on_publish", "on_subscribe", "on_publish"]
        )
        self.assertEqual([self.status(client, stream) for stream in (first, behind, other)], [0, 0, 0])

    def test_a_piece_that_is_not_stored(self):
        client = self.make()
        self.sink.error = OSError("no")
        stream = client.call(self.subscribe(1500))
        self.assertEqual(self.status(client, stream), 14)
        self.flushLoggedErrors(OSError)

    def test_pieces_wait_for_room(self):
        client = self.make()
        client.call(self.subscribe(2500), flush=False)
        client.protocol.dataReceived(client.h2.data_to_send())
        self.sink.full = True
        for count in (1, 2, 3):
            for _ in range(9):
                client.turn()
            self.assertEqual(len(self.sink.events), count)
            self.sink.commit()

    def test_a_deadline(self):
        client = self.make()
        self.sink.holds = True
        stream = client.call(self.subscribe(1500))
        client.turn(0.6)
        self.assertEqual(self.status(client, stream), 4)
        while self.sink.waiting:
            self.sink.commit()
            client.turn()
        self.assertEqual(sum(len(event.message.topics) for event in self.sink.events), 1500)
        self.assertEqual(self.status(client, client.call(self.subscribe(1500))), None)

    def leave(self):
        """Have a caller leave before the last piece."""
        client = self.make()
        self.sink.holds = True
        client.call(self.subscribe(2500))
        client.protocol.connectionLost()
        empty = self.factory.when_empty()
        self.assertNoResult(empty)
        return client, empty

    def test_a_stop_waits_for_the_pieces_of_a_caller_that_has_left(self):
        client, empty = self.leave()
        while self.sink.waiting:
            self.sink.commit()
            client.turn()
        self.successResultOf(empty)
        self.assertEqual(sum(len(event.message.topics) for event in self.sink.events), 2500)

    def test_a_stop_does_not_wait_for_them_for_ever(self):
        _, empty = self.leave()
        with capturedLogs() as logged:
            self.factory.give_up()
        self.successResultOf(empty)
        self.assertIn("the rest of them is lost", formatEvent(logged[-1]))


class HostileTests(CallsMixin, SynchronousTestCase):
    def test_orphans_are_reset(self):
        client = self.make()
        orphan = client.call(None)
        client.turn(factory_module.ENDING_TIME - 0.1)
        self.assertIsNone(client.answer(orphan))
        other = client.call(publish(1))
        client.turn(0.2)
        self.assertEqual(client.answer(orphan).reset, 8)
        self.assertEqual((self.status(client, other), self.counters.orphaned), (0, 1))

    def test_orphans_starve_nobody(self):
        client = self.make()
        for _ in range(CALLS + 200):
            client.call(None, flush=False)
            if client.h2.open_outbound_streams % 100 == 0:
                client.send()
        client.send()
        self.assertEqual(self.status(client, client.call(publish(1))), 0)
        self.assertFalse(client.closed)
        self.assertGreater(self.counters.orphaned, 199)

    def test_too_many_calls_wait_for_a_commit(self):
        client = self.make()
        self.sink.holds = True
        streams = []
        for _ in range(12):
            streams += [client.call(publish(number), flush=False, grpc_timeout=None) for number in range(100)]
            client.send()
        self.assertEqual(self.counters.calls[8], 200)
        self.sink.commit()
        client.turn()
        self.assertEqual(self.counters.calls[0], CALLS)

    def test_unfinished_messages_are_bounded(self):
        self.patch(factory_module, "UNFINISHED", 100_000)
        client = self.make(max_frame=90_000)
        other = Client(self.factory, self.clock)
        longest = client.call(b"x", data=prefixed(b"x" * 90_000)[:60_000], end=False)
        shorter = other.call(b"x", data=prefixed(b"x" * 90_000)[:50_000], end=False)
        client.turn()
        self.assertEqual(self.status(client, longest), 8)
        self.assertEqual(client.answer(longest).reset, 0)
        self.assertIsNone(other.answer(shorter))
        self.assertEqual(self.counters.refused, 1)

    def test_a_message_that_claims_to_be_too_long_is_refused_at_once(self):
        client = self.make()
        stream = client.call(b"x", data=b"\0\xff\xff\xff\xff", end=False)
        answer = client.answer(stream)
        self.assertEqual((answer.status, answer.words, answer.reset), (8, "the message exceeds sidecar.max_frame", 0))

    def test_uncommitted_events_are_bounded(self):
        self.patch(factory_module, "UNSTORED", 1000)
        client = self.make()
        self.sink.holds = True
        first = client.call(request(OnPublish(client_id="c", payload=b"x" * 1500)))
        second = client.call(publish(1))
        self.assertEqual((self.status(client, first), self.status(client, second)), (None, 8))
        self.sink.commit()
        third = client.call(publish(1))
        self.sink.commit()
        client.turn()
        self.assertEqual((self.status(client, first), self.status(client, third)), (0, 0))

    def test_no_room_for_the_answer(self):
        client = self.make()
        client.h2.update_settings({4: 0})
        client.send()
        stream = client.call(publish(1))
        self.assertIsNone(client.answer(stream))
        client.h2.increment_flow_control_window(4, stream)
        client.send()
        self.assertIsNone(client.answer(stream))
        client.h2.increment_flow_control_window(100, stream)
        client.send()
        self.assertEqual(self.status(client, stream), 0)

    def test_a_peer_that_reads_no_answers_is_not_read(self):
        client = self.make()
        client.protocol.pauseProducing()
        self.assertEqual(client.transport.producerState, "paused")
        client.protocol.resumeProducing()
        self.assertEqual(client.transport.producerState, "producing")

    def test_floods(self):
        reset = (b"\0\0\4\3\0" + b"\0\0\0\1" + b"\0\0\0\0") * (IDLE + 200)
        for flood in (
            b"\0\0\x08\6\0\0\0\0\0" + b"x" * 8,  # PING
            b"\0\0\0\4\0\0\0\0\0",  # SETTINGS
            b"\0\0\4\x08\0\0\0\0\0\0\0\0\1",  # WINDOW_UPDATE
            b"\0\0\0\xee\0\0\0\0\0",  # of an unknown kind
            b"\0\0\5\2\0\0\0\0\1\0\0\0\0\0",  # PRIORITY
        ):
            client = self.make()
            client.send(flood * (IDLE - 100))
            self.assertIsNone(client.gone, flood)
            client.send(flood * 200)
            self.assertEqual((client.gone, client.closed), (11, True), flood)
        client = self.make()
        client.call(publish(1))
        client.send(reset)
        self.assertEqual(client.gone, 11)

    def test_floods_of_small_data(self):
        client = self.make()
        stream = client.call(b"x", data=prefixed(b"x" * 10_000)[:5], end=False)
        client.send((b"\0\0\1\0\0" + stream.to_bytes(4, "big") + b"x") * (IDLE + 100))
        self.assertEqual(client.gone, 11)

    def test_rapid_reset(self):
        client = self.make()
        for _ in range(IDLE + 100):
            stream = client.call(None, flush=False)
            client.h2.reset_stream(stream)
        client.send()
        self.assertEqual((client.gone, client.closed), (11, True))

    def test_a_flood_has_its_turn_like_others(self):
        client = self.make()
        other = Client(self.factory, self.clock)
        client.protocol.dataReceived((b"\0\0\x08\6\0\0\0\0\0" + b"x" * 8) * 1500)
        self.assertEqual(client.transport.producerState, "paused")
        other.protocol.dataReceived(b"")
        other.call(publish(1), flush=False)
        other.protocol.dataReceived(other.h2.data_to_send())
        self.clock.advance(0)
        other.read()
        self.assertEqual(self.status(other, 1), 0)
        client.turn()
        self.assertEqual(client.transport.producerState, "producing")

    def test_frames_that_no_client_sends(self):
        for bytes_, code in (
            (b"\xff\xff\xff\0\0\0\0\0\1", 6),  # 16 MiB: it is not collected
            (b"\0\x20\x00\1\0\0\0\0\1" + b"\x20" * 8192 + b"\0\0\1\x09\0\0\0\0\1x", 11),  # headers that go on
            (b"\0\0\1\0\0\0\0\0\1x", 1),  # data of no call
            (b"\0\0\1\0\x08\0\0\0\1\xff", 1),  # padding that is longer than the frame
            (b"\0\0\5\1\4\0\0\0\1\xff\xff\xff\xff\xff", 9),  # headers that are no HPACK
            (b"\0\0\0\5\4\0\0\0\1", 6),  # PUSH_PROMISE
        ):
            client = self.make()
            client.send(bytes_)
            self.assertEqual(
                (client.closed, bytes_[:10] if client.gone is None else client.gone), (True, client.gone), bytes_[:9]
            )
            self.assertIsNotNone(client.gone, bytes_[:9])
            if code != 9:
                self.assertEqual(client.gone, code, bytes_[:9])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_headers_that_cost_much_take_a_turn_each(self):
        client = self.make()
        block = b"\0\x1f\xf0\1\4\0\0\0\1" + b"\x20" * 0x1FF0
        client.protocol.dataReceived(block * 8)
        self.assertEqual((client.transport.producerState, client.closed), ("paused", False))

    def test_huge_header_lists(self):
        client = self.make()
        headers = [(f"x-{number}", "y" * 100) for number in range(300)]
        client.h2.send_headers(1, [(":method", "POST"), (":path", "/x"), *headers])
        client.send()
        self.assertTrue(client.closed)

    def test_padding_counts_for_the_window(self):
        client = self.make()
        stream = client.call(None)
        content = prefixed(request(OnPublish(client_id="c", payload=b"x" * 3_000_000)))
        for start in range(0, len(content), 8000):
            piece = content[start : start + 8000]
            client.h2.send_data(stream, piece, pad_length=200, end_stream=start + 8000 >= len(content))
            client.send()
        self.assertEqual(self.status(client, stream), 0)

    def test_what_is_not_http2(self):
        self.make()
        for begin in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\x02",
            b"\0\0\0\x10abc",
            b"PRI * HTTP/2.0\r\n\r\nXX",
            b"nonsense",
        ):
            client = Client(self.factory, self.clock, begin=False)
            client.protocol.dataReceived(begin[:1])
            client.protocol.dataReceived(begin[1:])
            self.assertTrue(client.closed, begin)
        silent = Client(self.factory, self.clock, begin=False)
        self.clock.advance(11)
        self.assertTrue(silent.closed)


class EndTests(CallsMixin, SynchronousTestCase):
    def test_calls_in_flight_are_answered(self):
        client = self.make()
        self.sink.holds = True
        stream = client.call(publish(1))
        client.protocol.close()
        client.turn()
        self.assertEqual((client.closed, client.gone), (False, 0))
        self.sink.commit()
        data = client.transport.value()
        self.assertTrue(data)
        self.assertTrue(client.closed)
        self.assertEqual(self.counters.calls[0], 1)
        self.assertGreater(stream, 0)

    def test_a_client_that_says_goodbye_gets_its_answers(self):
        client = self.make()
        self.sink.holds = True
        client.call(publish(1))
        client.send(b"\0\0\x08\7\0\0\0\0\0" + bytes(8) + b"\0\0\x08\6\0\0\0\0\0" + b"x" * 8)
        self.assertFalse(client.closed)
        self.sink.commit()
        client.turn()
        self.assertEqual(self.status(client, 1), 0)
        self.assertTrue(client.closed)
