"""What a NATS server sends, in any pieces."""

from itertools import pairwise
from time import process_time

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.errors import NATSMalformed
from mqhooks.nats.message import encode_headers, encode_subject
from mqhooks.nats.parser import MAX_LINE, NatsParser

LIMIT = 1000

subjects = st.from_regex(r"[a-z$_]{1,8}(\.[a-z0-9]{1,8}){0,3}", fullmatch=True).map(str.encode)
blocks = st.dictionaries(st.from_regex(r"[A-Za-z-]{1,12}", fullmatch=True), st.text("abc 1:-é", max_size=20), max_size=4)
messages = st.tuples(
    subjects, st.sampled_from([b"1", b"22"]), st.one_of(st.just(b""), subjects), blocks, st.binary(max_size=300)
)
controls = st.sampled_from(
    [(b"PING", b""), (b"PONG", b""), (b"+OK", b""), (b"-ERR", b"'No such thing'"), (b"INFO", b'{"a": 1}')]
)


def written(item):
    if len(item) == 2:
        return b" ".join(filter(None, item)) + b"\r\n"
    subject, sid, reply, headers, payload = item
    block = encode_headers(headers) if headers else b""
    sizes = [b"%d" % len(block)] * bool(block) + [b"%d" % (len(block) + len(payload))]
    words = [b"HMSG" if block else b"MSG", subject, sid, *filter(None, [reply]), *sizes]
    return b" ".join(words) + b"\r\n" + block + payload + b"\r\n"


def pieces(data, cuts):
    marks = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(marks)]


class Read:
    """A parser and what it has found."""

    def __init__(self):
        self.found = []
        self.parser = NatsParser(lambda verb, rest: self.found.append((verb, rest)), LIMIT)
        self.parser.receivers = {sid: lambda message, sid=sid: self.got(sid, message) for sid in (b"1", b"22")}

    def got(self, sid, message):
        self.found.append((message.subject.encode(), sid, message.reply.encode(), message.headers, message.payload))


def expected(items):
    return [(*item[:3], {k: v.strip() for k, v in item[3].items()}, item[4]) if len(item) == 5 else item for item in items]


class ParserTests(SynchronousTestCase):
    @given(st.lists(st.one_of(messages, controls), max_size=8), st.lists(st.integers(0, 5000), max_size=30))
    def test_any_split(self, items, cuts):
        read = Read()
        for piece in pieces(b"".join(map(written, items)), cuts):
            read.parser.feed(piece)
        self.assertEqual(read.found, expected(items))
        self.assertEqual(read.parser.pending, 0)

    @given(st.lists(st.one_of(st.binary(max_size=60), messages.map(written), controls.map(written)), max_size=8))
    def test_any_bytes(self, parts):
        """Whatever comes is taken or refused in one way, and the same however it is divided."""
        data, results = b"".join(parts), []
        for cuts in ((), range(len(data))):
            read = Read()
            try:
                for piece in pieces(data, cuts):
                    read.parser.feed(piece)
                results.append((read.found, None, read.parser.pending))
            except NATSMalformed as error:
                self.assertTrue(str(error).isprintable())
                results.append((read.found, str(error), None))
        self.assertEqual(*results)

    def refused(self, data, words):
        read = Read()
        error = self.assertRaises(NATSMalformed, read.parser.feed, data)
        self.assertIn(words, str(error))
        self.assertEqual(read.found, [])

    def test_what_is_no_message(self):
        for line in (
            b"MSG",
            b"MSG a 1",
            b"MSG a 1 r x 5",
            b"HMSG a 1 12",
            b"MSG a 1 five",
            b"MXX a 1 5",
            b"Hello there",
            b"HMSG a 1 x 5",
        ):
            self.refused(line + b"\r\n12345\r\n", "a line that is not a message")
        for line in (b"MSG a 1 -5", b"HMSG a 1 9 5", b"HMSG a 1 -1 5"):
            self.refused(line + b"\r\n12345\r\n", "a message of an impossible size")
        self.refused(b"MSG a 1 " + b"9" * 5000 + b"\r\n", "a line that is not a message")
        self.refused(b"MSG a 1 4\r\n12345\r\n", "a message of the wrong length")
        self.refused(b"HMSG a 1 4 5\r\n12345\r\n", "or with malformed headers")

    def test_message_that_is_too_long_is_refused_before_it_has_come(self):
        self.refused(b"MSG a 1 %d\r\n" % (LIMIT + 1), "a message of 1001 bytes, but at most 1000 are accepted")
        read = Read()
        read.parser.feed(written((b"a", b"1", b"", {}, bytes(LIMIT))))
        self.assertEqual(len(read.found), 1)

    def test_line_without_an_end(self):
        self.refused(b"x" * MAX_LINE, "a line without an end")
        read = Read()
        read.parser.feed(b"x" * (MAX_LINE - 1))
        self.assertRaises(NATSMalformed, read.parser.feed, b"x")

    def test_lower_case(self):
        read = Read()
        read.parser.feed(b"msg a 1 2\r\nhi\r\nping\r\nMSG\ta\t22\tr\t0\r\n\r\n")
        self.assertEqual(read.found, [(b"a", b"1", b"", {}, b"hi"), (b"PING", b""), (b"a", b"22", b"r", {}, b"")])

    def test_messages_for_nobody_are_left_out(self):
        read = Read()
        read.parser.feed(b"MSG a 3 2\r\nhi\r\nMSG a 1 2\r\nho\r\n")
        self.assertEqual([found[4] for found in read.found], [b"ho"])

    def test_receiver_that_fails(self):
        read = Read()
        read.parser.receivers = {b"1": lambda message: 1 / 0, b"22": lambda message: read.got(b"22", message)}
        read.parser.feed(b"MSG a 1 2\r\nhi\r\nMSG a 22 2\r\nho\r\n")
        self.assertEqual([found[4] for found in read.found], [b"ho"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_nothing_after_it_is_stopped(self):
        read = Read()
        read.parser.receivers = {
            b"1": lambda message: setattr(read.parser, "stopped", True) or read.found.append(message.payload)
        }
        read.parser.feed(b"MSG a 1 2\r\nhi\r\nMSG a 1 2\r\nho\r\nPING\r\n")
        self.assertEqual(read.found, [b"hi"])

    def test_long_message_in_many_pieces_is_not_copied_with_each(self):
        size = 8 << 20
        got = []
        parser = NatsParser(lambda verb, rest: None, size)
        parser.receivers = {b"1": lambda message: got.append(len(message.payload))}
        parser.feed(b"MSG a 1 %d\r\n" % size)
        piece, begun = bytes(1 << 10), process_time()
        for _ in range(size >> 10):
            parser.feed(piece)
        self.assertEqual(parser.pending, size + len(b"MSG a 1 8388608\r\n"))
        parser.feed(b"\r\n")
        self.assertEqual(got, [size])
        self.assertLess(process_time() - begun, 2.0)


class Headers(SynchronousTestCase):
    def message(self, block):
        read, found = Read(), []
        read.parser.receivers = {b"1": found.append}
        read.parser.feed(b"HMSG a 1 %d %d\r\n%b\r\n" % (len(block), len(block), block))
        return found[0]

    def test_status(self):
        for block, status, words in (
            (b"NATS/1.0 503\r\n\r\n", 503, ""),
            (b"NATS/1.0 404 Message Not Found\r\n\r\n", 404, "Message Not Found"),
            (b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 7\r\n\r\n", 204, "EOB"),
            (b"NATS/1.0\r\n404: x\r\n\r\n", 0, ""),
            (b"NATS/1.0\r\n\r\n", 0, ""),
            (b"NATS/1.0 \xff\r\n\r\n", 0, ""),
        ):
            message = self.message(block)
            self.assertEqual((message.status, message.description), (status, words))

    def test_first_of_a_name_and_nothing_that_is_no_header(self):
        block = b"NATS/1.0\r\nA: 1\r\nnonsense\r\nA: 2\r\nB:\xff\r\n C : d:e \r\n\r\n"
        self.assertEqual(self.message(block).headers, {"A": "1", "B": "�", " C ": "d:e"})

    def test_what_cannot_be_written(self):
        for headers in ({"a b": "c"}, {"": "c"}, {"a:": "c"}, {"a": "b\r\nc: d"}, {"a": "b\nc"}, {"é": "x"}):
            self.assertRaises(ValueError, encode_headers, headers)
        for subject in ("", "a b", "a\r\nb", ".a", "a.", "a..b", "a\tb", "x" * 1025, "a\x00"):
            self.assertRaises(ValueError, encode_subject, subject)
        self.assertEqual(encode_subject("$JS.API.é.>"), "$JS.API.é.>".encode())
