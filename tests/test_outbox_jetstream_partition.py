"""One partition, one outbox and their store, without a server: what they make of what comes at an awkward moment."""

from types import SimpleNamespace

from twisted.internet.defer import Deferred, ensureDeferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.delivery import Delivery
from mqhooks.errors import NATSError, NATSTooLong
from mqhooks.nats.jetstream import Ack
from mqhooks.nats.settings import NATSSettings, Server
from mqhooks.outbox.jetstream import outbox as outboxes
from mqhooks.outbox.jetstream.acceptor import AGAIN, Held
from mqhooks.outbox.jetstream.layout import COUNT, Checkpoint, Names, decode_checkpoint, encode, encode_checkpoint
from mqhooks.outbox.jetstream.members import LISTEN
from mqhooks.outbox.jetstream.outbox import JetStreamOutbox, StreamLimits
from mqhooks.outbox.jetstream.partition import PATIENCE, Partition
from mqhooks.outbox.jetstream.store import COUNTING, TENDING, JetStreamSettings, JetStreamStore
from mqhooks.outbox.stored import decode_handed
from tests.outboxes import ReactorClock


class Outbox:
    """The owner; ``full`` has it without room."""

    me = "us"
    full = True

    def __init__(self):
        self.handed_out, self.losses = [], 0
        self.handed_over, self.freed, self.complaints = [], [], []

    def preferred(self, partition):
        return True

    def room(self):
        return not self.full

    def ready(self, row, deliveries):
        row.number = row.seq
        self.handed_out.append(row.seq)

    def lost(self, partition, count):
        self.losses += count

    def counted(self, count, *, resumed, replayed=False):
        """Nobody asks."""

    def revoked(self, row):
        row.number = 0

    def handed(self, count):
        self.handed_over.append(count)

    def given_up(self, partition):
        self.freed.append(partition)

    def complain(self, key, error):
        self.complaints.append(error)

    def changed(self):
        """Nobody asks."""


class Stream:
    """
    A log with some messages, of which an owner has left a checkpoint; batches are answered when the test says so.

    :ivar longest: the longest checkpoint that the server takes, in bytes.
    """

    longest = 1 << 20

    def __init__(self, log, checkpoint):
        self.log = {number: message(number) for number in log}
        self.own = SimpleNamespace(sequence=max(log) + 1, payload=encode_checkpoint(checkpoint))
        self.asked = []

    def direct_last(self, stream, subject):
        return succeed(self.own)

    def last(self, stream, subject):
        return succeed(self.own if subject == Names("MQ", "w").own(0) else self.log[max(self.log)])

    def stream_info(self, stream):
        return succeed({"config": {"subjects": []}})

    def publish(self, subject, data, **more):
        if len(data) > self.longest:
            return fail(NATSTooLong(f"{len(data)} bytes are too long"))
        self.own = SimpleNamespace(sequence=self.own.sequence + 1, payload=data)
        return succeed(SimpleNamespace(seq=self.own.sequence))

    def delete_message(self, stream, number):
        """Nobody asks."""

    def purge(self, stream, *, subject, below):
        return Deferred()

    def direct(self, stream, start, *, subject):
        return self.get(stream, start, subject=subject)

    def get(self, stream, start, *, subject):
        return succeed(next((self.log[each] for each in sorted(self.log) if each >= start), None))

    def direct_batch(self, stream, start, subject, *, limit, max_bytes, timeout):
        answer = Deferred()
        self.asked.append((start, limit, answer))
        return answer

    def answer(self):
        start, limit, answer = self.asked.pop(0)
        answer.callback(SimpleNamespace(messages=[self.log[each] for each in sorted(self.log) if each >= start][:limit]))


def message(number):
    return SimpleNamespace(sequence=number, headers={COUNT: "1"}, payload=encode([Delivery(f"msg_{number}", "c", 1, b"{}", 1)]))


def announcement(number, before=None):
    """Return what the leader tells when it has stored a message."""
    stored = message(number)
    before = number - 1 if before is None else before
    headers = {**stored.headers, "Nats-Sequence": str(number), "Nats-Last-Sequence": str(before)}
    return SimpleNamespace(headers=headers, payload=stored.payload)


class PartitionTests(SynchronousTestCase):
    def test_what_is_to_be_read_again_outlives_an_answer_that_begins_behind_it(self):
        clock, outbox = Clock(), Outbox()
        stream = Stream((5, 7, 8, 9), Checkpoint(upto=7, open={5: "0", 7: "0"}, tail=7, pending=2, size=2))
        client = SimpleNamespace(subscribe=lambda subject, told: None)
        partition = Partition(0, clock, client, stream, Names("MQ", "w"), outbox, clock.seconds)
        partition.start()
        clock.advance(0)
        # There is no room to read anything again, so what follows is only counted.
        self.assertEqual([start for start, _, _ in stream.asked], [8])
        stream.answer()
        self.assertEqual((partition.tail, partition.pending, outbox.handed_out), (9, 4, []))
        outbox.full = False
        partition.read()
        while stream.asked:
            stream.answer()
        self.assertEqual((outbox.handed_out, outbox.losses, partition.pending), ([5, 7, 8, 9], 0, 4))

    def test_what_cannot_be_read_is_counted_as_lost(self):
        clock, outbox = Clock(), Outbox()
        # Of three deliveries one was settled by the last owner; the others are found in a backlog.
        stream = Stream((5, 7, 8, 9), Checkpoint(upto=5, open={5: "1"}, tail=8, pending=6, size=6))
        for damaged in (5, 8):
            stream.log[damaged] = SimpleNamespace(sequence=damaged, headers={COUNT: "3"}, payload=b"\xff")
        partition = self.owned(clock, outbox, stream)
        self.assertEqual((outbox.losses, partition.pending, outbox.handed_out), (5, 2, [7, 9]))

    def test_nobody_waits_for_a_message_that_is_gone(self):
        clock, outbox = Clock(), Outbox()
        stream = Stream((5,), Checkpoint(upto=5, tail=5))
        partition = self.owned(clock, outbox, stream)
        told = []
        partition.when_counted(6, lambda: told.append(6))
        for _ in range(50):
            clock.advance(0.02)
            self.answer(stream)
        self.assertEqual((told, partition.tail), ([6], 5))

    def test_an_answer_that_begins_behind_a_backlog_skips_none_of_it(self):
        clock, outbox = Clock(), Outbox()
        stream = Stream((6, 7, 8), Checkpoint(upto=5, tail=5))
        partition = self.owned(clock, outbox, stream, full=True)
        self.assertEqual((partition.tail, outbox.handed_out), (8, []))
        # One was announced before the one that precedes it, whose announcement comes while the log is asked for it.
        for number in (9, 10):
            stream.log[number] = message(number)
        self.told(announcement(10))
        self.assertEqual([start for start, _, _ in stream.asked], [9])
        self.told(announcement(9))
        outbox.full = False
        self.answer(stream)
        self.assertEqual((outbox.handed_out, outbox.losses, partition.pending), ([6, 7, 8, 9, 10], 0, 5))

    def test_what_comes_while_the_leader_is_asked_for_a_backlog_that_is_gone_is_not_gone(self):
        clock, outbox = Clock(), Outbox()
        stream = Stream((5,), Checkpoint(upto=5, tail=8, pending=3))
        asked = []
        self.patch(stream, "get", lambda *_, **__: asked.append(Deferred()) or asked[-1])
        partition = self.owned(clock, outbox, stream)
        for _ in range(10):
            clock.advance(0.02)
            self.answer(stream)
        self.assertEqual(len(asked), 1)
        stream.log[9] = message(9)
        self.told(announcement(9, before=5))
        asked.pop().callback(None)
        self.answer(stream)
        self.assertEqual((outbox.handed_out, partition.tail), ([9], 9))

    def test_what_is_given_up_is_handed_over_before_the_answer(self):
        clock, outbox = Clock(), Outbox()
        stream = Stream((6, 7, 8), Checkpoint(upto=5, tail=5))
        partition = self.owned(clock, outbox, stream)
        answer = Deferred()
        self.patch(stream, "publish", lambda *_, **__: answer)
        counted = []
        partition.when_counted(9, lambda: counted.append((partition.mine, list(outbox.handed_over))))
        stopped = partition.stop()
        # It counts here as pending no longer.
        self.assertEqual((partition.mine, outbox.handed_over, counted), (False, [3], [(False, [3])]))
        self.assertNoResult(stopped)
        answer.callback(SimpleNamespace(seq=10))
        self.successResultOf(stopped)
        self.assertEqual((outbox.handed_over, outbox.freed), ([3], [0]))

    def test_a_checkpoint_that_cannot_be_read_is_a_problem_of_nats_until_it_can(self):
        clock, outbox = Clock(), Outbox()
        stream = Stream((6, 7, 8), Checkpoint(upto=5, tail=5))
        good, stream.own.payload = stream.own.payload, b'{"tail": "many"}'
        partition = self.owned(clock, outbox, stream)
        why = "Expected `int`, got `str` - at `$.tail`"
        line = f"the checkpoint of MQ_w_0 cannot be read: {why}: is another bridge newer than this?"
        self.assertEqual([str(error) for error in outbox.complaints], [line])
        for asked in (partition.last_of("a-x"), partition.ended()):
            self.assertEqual(str(self.failureResultOf(ensureDeferred(asked), NATSError).value), line)
        stream.own.payload = good
        clock.advance(0.1)
        self.answer(stream)
        self.assertEqual((partition.mine, outbox.handed_out), (True, [6, 7, 8]))

    def test_what_is_settled_behind_a_parked_one_is_deleted_as_fast_as_it_comes(self):
        clock, outbox = Clock(), Outbox()
        stream = Stream((1,), Checkpoint())
        self.patch(stream, "delete_message", lambda _, number: succeed(stream.log.pop(number)))
        partition = self.owned(clock, outbox, stream)
        for start in range(2, 8002, 100):
            for number in range(start, start + 100):
                stream.log[number] = message(number)
                self.told(announcement(number))
                partition.settle(partition.rows[number], 0)
            clock.advance(0.5)
        self.assertEqual((outbox.handed_out, list(partition.rows)), (list(range(1, 8002)), [1]))
        # Each second 200 come.
        self.assertLess(len(stream.log), 200 * (PATIENCE + 1))
        self.assertIn(1, stream.log)

    def test_who_stops_while_it_takes_a_partition_leaves_it_to_others_at_once(self):
        clock, outbox, answer = Clock(), Outbox(), Deferred()
        stream = Stream((6, 7, 8), Checkpoint(upto=5, tail=5))
        publish = stream.publish
        self.patch(stream, "publish", lambda *_, **__: answer)
        partition = self.owned(clock, outbox, stream)
        stopped = partition.stop()
        self.assertNoResult(stopped)
        self.patch(stream, "publish", publish)
        answer.callback(SimpleNamespace(seq=10))
        self.successResultOf(stopped)
        self.assertEqual(decode_checkpoint(stream.own.payload), Checkpoint(turn=2, upto=5, tail=5))
        self.assertEqual((partition.mine, outbox.freed, outbox.handed_out), (False, [0], []))

    def test_a_former_partition_has_ended_when_no_message_in_it_is_open(self):
        # After a crash of its owner fewer may count as pending than there are, until all are settled.
        for checkpoint, ended in (
            (Checkpoint(upto=8, tail=8, open={7: "0"}), False),
            (Checkpoint(upto=7, tail=8), False),
            (Checkpoint(upto=8, tail=8, pending=1), False),
            (Checkpoint(upto=7, tail=7), False),
            (Checkpoint(upto=8, tail=8), True),
        ):
            client, clock = SimpleNamespace(), Clock()
            stream = Stream((6, 7, 8), checkpoint)
            partition = Partition(0, clock, client, stream, Names("MQ", "w"), Outbox(), clock.seconds)
            self.assertEqual(self.successResultOf(ensureDeferred(partition.ended())), ended, checkpoint)

    def test_a_checkpoint_that_is_too_long_for_the_server_names_fewer_open_messages(self):
        clock, outbox = Clock(), Outbox()
        stream = Stream((1,), Checkpoint())
        partition = self.owned(clock, outbox, stream)
        for number in range(2, 2001):
            stream.log[number] = message(number)
            self.told(announcement(number))
        for number in range(2, 2000, 2):
            partition.settle(partition.rows[number], 0)
        stream.longest = 5000
        deleted = []
        self.patch(stream, "delete_message", lambda _, number: deleted.append(number) or succeed(None))
        for _ in range(int(2 * PATIENCE)):
            clock.advance(0.5)
            self.assertTrue(partition.may_send)
        self.assertEqual((outbox.complaints, partition.pending), ([], 1001))
        noted = decode_checkpoint(stream.own.payload)
        self.assertEqual(list(noted.open), list(range(1, noted.upto + 1, 2)))
        self.assertGreater(len(noted.open), 200)
        # What no checkpoint says is settled stays in the log.
        clock.advance(0.5)
        self.assertEqual(deleted, list(range(2, noted.upto + 1, 2))[: len(deleted)])
        self.assertGreater(len(deleted), 64)
        # Whoever comes next has all that is open, sends no more than the rest of the log again, and counts it.
        self.successResultOf(partition.stop())
        after = Outbox()
        partition = self.owned(clock, after, stream)
        self.assertEqual(after.handed_out, [*range(1, noted.upto + 1, 2), *range(noted.upto + 1, 2001)])
        size = sum(len(stream.log[number].payload) for number in after.handed_out)
        self.assertEqual((after.losses, partition.pending, partition.size), (0, len(after.handed_out), size))

    def test_a_checkpoint_that_became_too_long_for_the_server_keeps_nobody_from_taking_over(self):
        clock, outbox = Clock(), Outbox()
        opened = dict.fromkeys(range(1, 1001), "0")
        stream = Stream(range(1, 1003), Checkpoint(upto=1000, open=opened, tail=1000, pending=1000))
        stream.longest = 5000
        partition = self.owned(clock, outbox, stream)
        self.assertEqual((partition.mine, outbox.handed_out), (True, list(range(1, 1003))))

    def test_an_unexpected_error_is_told_once_a_minute_until_it_is_over(self):
        clock, outbox = Clock(), Outbox()
        stream = Stream((1,), Checkpoint())
        direct_last = stream.direct_last
        self.patch(stream, "direct_last", lambda *_: fail(ZeroDivisionError("nobody expects it")))
        client = SimpleNamespace(subscribe=lambda subject, told: None)
        partition = Partition(0, clock, client, stream, Names("MQ", "w"), outbox, clock.seconds)
        self.addCleanup(partition.abort)
        partition.start()
        clock.pump([0.1] * 100)
        self.assertEqual((partition.mine, len(self.flushLoggedErrors(ZeroDivisionError))), (False, 1))
        self.patch(stream, "direct_last", direct_last)
        clock.pump([0.1] * 10)
        self.assertTrue(partition.mine)

    def test_no_checkpoint_at_all_fits(self):
        clock, outbox = Clock(), Outbox()
        stream = Stream((1,), Checkpoint())
        partition = self.owned(clock, outbox, stream)
        stream.longest = 10
        clock.pump([0.1] * 30)
        self.assertFalse(partition.may_send)
        self.assertRegex(outbox.complaints[0], "^[0-9]+ bytes are too long$")
        stream.longest = 1000
        clock.pump([0.1] * 5)
        self.assertEqual((partition.mine, partition.may_send), (True, True))

    def answer(self, stream):
        """Answer all requests of a partition."""
        while stream.asked:
            stream.answer()

    def owned(self, clock, outbox, stream, full=False):
        """Return a partition that is taken over, and has read what there is; ``told`` takes announcements to it."""
        outbox.full = full
        client = SimpleNamespace(subscribe=lambda subject, told: setattr(self, "told", told))
        partition = Partition(0, clock, client, stream, Names("MQ", "w"), outbox, clock.seconds)
        partition.start()
        clock.advance(0)
        self.answer(stream)
        self.flushLoggedErrors()
        return partition


class OutboxTests(SynchronousTestCase):
    def outbox(self, clock, stream):
        """Return an outbox that has taken its only partition over, and read it."""
        client = SimpleNamespace(
            info=None,
            subscribe=lambda subject, receive: None,
            publish=lambda subject, data: None,
            unsubscribe=lambda which: None,
        )
        outbox = JetStreamOutbox(
            "w",
            clock,
            client,
            stream,
            Names("MQ", "w"),
            1,
            StreamLimits(1 << 20, 10),
            "us",
            lambda: None,
            lambda: 0,
            clock.seconds,
            away=lambda: False,
            held=Held(),
        )
        outbox.start(0)
        clock.advance(LISTEN)
        clock.advance(0)
        stream.answer()
        self.addCleanup(outbox.abort)
        return outbox

    def test_an_answer_counts_however_much_was_handed_out_besides(self):
        self.patch(outboxes, "STALE", 10)
        clock = Clock()
        stream = Stream(range(1, 31), Checkpoint())
        outbox = self.outbox(clock, stream)
        claimed = outbox.claim(100, 1 << 20)
        self.assertEqual(len(claimed), 30)
        flying = [claimed[0], claimed[15], claimed[29]]
        self.assertEqual(outbox.enter(flying), flying)
        # The lease ends while its renewal has no answer.
        self.patch(stream, "publish", lambda *_, **__: Deferred())
        clock.pump([0.5] * 4)
        self.assertEqual(outbox.enter([claimed[1]]), [])
        outbox.acknowledge(flying)
        outbox.leave(flying)
        self.assertEqual((outbox.counts.delivered, outbox.counts.pending), (3, 27))

    def test_a_letter_that_is_too_long_for_the_next_server_is_stored_without_its_body(self):
        clock = Clock()
        stream = Stream((1,), Checkpoint())
        outbox = self.outbox(clock, stream)
        (delivery,) = outbox.claim(100, 1 << 20)
        letters = []

        def publish(subject, data, **more):
            if len(data) > 2000:
                return fail(NATSTooLong("a message is too long"))
            letters.append(decode_handed("w", data))
            return succeed(Ack("MQ_DEAD", 1))

        self.patch(stream, "publish", publish)
        outbox.bury(delivery, "http://h/", "answered 410", 410, b"gone" * 1000, 1)
        clock.advance(AGAIN)
        (letter,) = letters
        self.assertEqual((letter.delivery.id, letter.status, outbox.burying, outbox.buried), ("msg_1", 410, 0, 1))
        self.assertRegex(letter.reason, "^answered 410; a message is too long")


class StoreTests(SynchronousTestCase):
    def test_a_webhook_that_cannot_be_tended_holds_up_no_other_and_is_tended_again(self):
        for name, interval in (("tend", TENDING), ("look", COUNTING)):
            clock = ReactorClock()
            store = JetStreamStore(clock, JetStreamSettings(NATSSettings((Server("127.0.0.1", 1),)), synced=True))
            calls = []
            for webhook, error in (("first", True), ("second", False)):

                def called(*_, webhook=webhook, error=error, calls=calls):
                    calls.append(webhook)
                    if error:
                        raise ZeroDivisionError

                self.patch(store.outbox(webhook), name, called)
            store.startService()
            self.addCleanup(store.abort)
            clock.pump([interval] * 3)
            self.assertEqual(calls, ["first", "second"] * 3)
            # It is told once a minute.
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
