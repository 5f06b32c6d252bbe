"""The contract that every webhook transport has to keep, tested against real servers on loopback."""

import itertools
import socket
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest
from zope.interface.verify import verifyObject

from mqhooks.delivery import Head, Request, Response
from mqhooks.errors import BadAnswer, ConnectFailed, ConnectionBroken, DeliveryError, DeliveryTimeout
from mqhooks.http.limits import KEEP, MAX_BODY
from mqhooks.interfaces import IWebhookTransport
from tests.endpoints import Connection, Endpoint
from tests.programs import missing, program
from tests.waiting import until

NODE = """
const server = require("http").createServer((request, response) => {
  let body = "";
  request.on("data", (data) => { body += data; });
  request.on("end", () => {
    const answer = `${request.method} ${request.url} ${body}`;
    if (request.url === "/chunked") {
      response.write(answer.slice(0, 4));
      response.end(answer.slice(4));
      return;
    }
    if (request.url === "/interim") response.writeProcessing();
    if (request.url === "/close") response.setHeader("connection", "close");
    response.statusCode = {"/close": 503, "/empty": 204}[request.url] || 200;
    response.end(request.url === "/empty" ? undefined : answer);
  });
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
"""
"""An endpoint that answers with the request that it got."""

ENDS = ("nothing", "close", "reset")
"""What becomes of a connection after an early answer."""


class TransportContract:
    """Mix into a TestCase that has ``make(url, **options)``, with the options ``size``, ``timeout`` and ``tls``."""

    timeout = 120

    def start(self, answer=None, *, query="", **options):
        self.endpoint = Endpoint(answer)
        self.url = self.endpoint.listen(self, reactor) + query
        self.head = Head("POST", self.url, (("content-type", "application/json"), ("X-A", "b")))
        return self.connect(self.url, **options)

    def connect(self, url, **options):
        transport = self.make(url, **options)
        self.addCleanup(transport.close)
        return transport

    def request(self, body=b"{}", headers=(("webhook-id", "msg_1"),), head=None, **more):
        return Request(head or self.head, list(headers), body, **more)

    async def result(self, transport, *args, **more):
        try:
            return await transport.send(self.request(*args, **more))
        except DeliveryError as error:
            return error

    async def status(self, transport, *args, **more):
        return (await transport.send(self.request(*args, **more))).status

    async def test_interface(self):
        transport = self.start()
        verifyObject(IWebhookTransport, transport)

    async def test_request_that_cannot_be_written(self):
        transport = self.start()
        head = Head("POST", self.url, (("x-b", "caf\udce9"),))
        for wrong in (self.request(head=head), self.request(headers=[("x-b", "caf\udce9")]), self.request(path="/caf\udce9")):
            error = await self.assertFailure(transport.send(wrong), ConnectFailed)
            self.assertIn("/127.0.0.1:", str(error))
            self.assertIn(": the request cannot be written (", str(error))
            self.assertNotIn("\n", str(error))
        self.assertEqual(await self.status(transport), 200)
        self.assertEqual(len(self.endpoint.requests), 1)

    async def test_request_arrives_as_it_is(self):
        transport = self.start(query="?a=1")
        signed = [("webhook-id", "msg_1"), ("webhook-timestamp", "7"), ("webhook-signature", "v1,x")]
        self.assertEqual(await self.status(transport, '{"a":"é"}'.encode(), signed), 200)
        (request,) = self.endpoint.requests
        self.assertEqual((request.method, request.path, request.body), ("POST", "/hook?a=1", '{"a":"é"}'.encode()))
        for name, value in [*signed, ("X-A", "b"), ("content-type", "application/json"), ("content-length", "10")]:
            self.assertEqual(request.header(name), value)
        self.assertEqual(request.header("host"), self.url.split("/")[2])

    async def test_variation_changes_method_path_and_headers(self):
        transport = self.start(query="?a=1")
        self.assertEqual(await self.status(transport, b"x", method="PUT", path="/else?b=2"), 200)
        self.assertEqual(await self.status(transport, b"", [("X-Y", "1"), ("X-Z", "2")], method="DELETE"), 200)
        first, second = self.endpoint.requests
        self.assertEqual((first.method, first.path, first.body), ("PUT", "/else?b=2", b"x"))
        self.assertEqual((second.method, second.path, second.header("x-z")), ("DELETE", "/hook?a=1", "2"))

    async def test_answer_to_head_has_no_body(self):
        transport = self.start(lambda request: request.connection.send(b"HTTP/1.1 204 No\r\nContent-Length: 9\r\n\r\n"))
        self.assertEqual(await self.status(transport, b"", method="HEAD"), 204)

    async def test_path_is_never_empty(self):
        transport = self.start()
        for query, path in (("?token=1", "/?token=1"), ("", "/")):
            head = Head("POST", self.url.replace("/hook", query), ())
            self.assertEqual(await self.status(transport, head=head), 200)
            self.assertEqual(self.endpoint.requests[-1].path, path)

    async def test_response_has_status_headers_and_body(self):
        transport = self.start(lambda request: request.connection.reply(418, b"teapot", [("Retry-After", "7")]))
        response = await self.result(transport)
        self.assertIsInstance(response, Response)
        self.assertEqual((response.status, response.body, response.length, response.complete), (418, b"teapot", 6, True))
        self.assertIn((b"Retry-After", b"7"), response.headers)

    async def test_beginning_of_a_long_body_is_kept(self):
        transport = self.start(lambda request: request.connection.reply(500, b"x" * 100_000))
        for _ in range(3):
            response = await self.result(transport)
            self.assertEqual((response.body, response.length, response.complete), (b"x" * KEEP, 100_000, False))
        self.assertEqual(len(self.endpoint.connections), 1)

    async def test_endless_body_is_not_read(self):
        transport = self.start(lambda request: request.connection.reply(500, b"x" * (MAX_BODY * 3)))
        response = await self.result(transport)
        self.assertEqual(response.status, 500)
        self.assertLess(response.length, MAX_BODY * 2)
        await self.endpoint.connections[0].closed

    async def test_redirect_is_a_response_like_any_other(self):
        for status in (301, 302, 303, 307, 308):
            transport = self.start(
                lambda request, status=status: request.connection.reply(status, b"", [("Location", "/elsewhere")])
            )
            self.assertEqual(await self.status(transport), status)
            self.assertEqual([request.path for request in self.endpoint.requests], ["/hook"])

    async def test_cookies_are_not_sent_back(self):
        transport = self.start(lambda request: request.connection.reply(200, b"", [("Set-Cookie", "a=b")]))
        for _ in range(2):
            await self.result(transport)
        self.assertEqual([request.header("cookie") for request in self.endpoint.requests], [None, None])

    async def test_connection_is_reused(self):
        transport = self.start()
        for _ in range(20):
            self.assertEqual(await self.status(transport), 200)
        self.assertEqual(len(self.endpoint.connections), 1)

    async def test_answers_of_all_kinds_leave_the_connection_usable(self):
        kinds = [
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
        ]
        answers = iter(kinds)
        transport = self.start(lambda request: request.connection.send(next(answers)))
        received = [await self.result(transport) for _ in kinds]
        self.assertEqual([response.status for response in received], [204, 200, 200, 202, 304])
        self.assertEqual([response.body for response in received], [b"", b"abcde", b"x", b"", b""])
        self.assertEqual(len(self.endpoint.connections), 1)

    async def test_body_may_end_with_its_connection(self):
        def answer(request):
            request.connection.send(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
            request.connection.transport.loseConnection()

        response = await self.result(self.start(answer))
        self.assertEqual((response.status, response.body), (200, b"until the end"))

    async def test_status_stands_whatever_becomes_of_the_body(self):
        def answer(request):
            request.connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            request.connection.transport.loseConnection()

        response = await self.result(self.start(answer))
        self.assertEqual((response.status, response.complete), (200, False))

    async def test_slow_body_does_not_undo_a_status(self):
        half = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1"
        transport = self.start(lambda request: request.connection.send(half), timeout=1.0)
        self.assertEqual(await self.status(transport), 200)
        await self.endpoint.connections[0].closed

    async def test_status_that_http_does_not_know_is_a_failure(self):
        for status in ("000", "099", "600", "999"):
            raw = f"HTTP/1.1 {status} What\r\nContent-Length: 0\r\n\r\n".encode()
            transport = self.start(lambda request, raw=raw: request.connection.send(raw))
            self.assertIsInstance(await self.result(transport), BadAnswer, status)

    async def test_another_protocol_is_a_failure(self):
        switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
        transport = self.start(lambda request: request.connection.send(switch), timeout=1.0)
        self.assertIsInstance(await self.result(transport), DeliveryError)

    async def test_garbage_is_a_failure(self):
        transport = self.start(lambda request: request.connection.send(b"SSH-2.0-OpenSSH_9.2\r\n"))
        self.assertIsInstance(await self.result(transport), BadAnswer)
        self.assertIsInstance(await self.result(transport), BadAnswer)
        self.assertEqual(len(self.endpoint.connections), 2)

    async def test_no_answer_in_time(self):
        transport = self.start(lambda request: None, timeout=1.0)
        error = await self.result(transport)
        self.assertIsInstance(error, DeliveryTimeout)
        self.assertEqual(str(error), f"{self.url.removesuffix('/hook')}: no answer within 1 s")
        await self.endpoint.connections[0].closed

    async def test_connection_closed_without_an_answer(self):
        transport = self.start(lambda request: request.connection.transport.loseConnection())
        self.assertIsInstance(await self.result(transport), ConnectionBroken)
        self.assertEqual(len(self.endpoint.requests), 1)

    async def test_connection_reset_without_an_answer(self):
        transport = self.start(lambda request: request.connection.transport.abortConnection())
        error = await self.result(transport)
        self.assertIsInstance(error, ConnectionBroken)
        self.assertNotRegex(str(error), r"\.$")

    async def test_connection_refused(self):
        transport = self.start()
        await self.endpoint.port.stopListening()
        results = await gatherResults([self.defer(self.result(transport)) for _ in range(10)])
        self.assertEqual({type(error) for error in results}, {ConnectFailed})
        # The log appends more words to it.
        self.assertRegex(str(results[0]), r"refused\b.*[^.]$")

    def defer(self, coroutine):
        return ensureDeferred(coroutine)

    async def test_close_ends_what_is_under_way(self):
        transport = self.start(lambda request: None)
        under_way = self.defer(self.result(transport))
        await until(lambda: self.endpoint.requests)
        await transport.close()
        self.assertIsInstance(await under_way, DeliveryError)
        self.assertIsInstance(await self.result(transport), ConnectFailed)
        await transport.close()
        await until(lambda: not self.endpoint.open)

    async def test_cancelled_request_harms_nobody(self):
        transport = self.start()
        cancelled = transport.send(self.request())
        cancelled.addErrback(lambda failure: None)
        cancelled.cancel()
        self.assertEqual(await self.status(transport), 200)

    async def test_long_request_arrives(self):
        transport = self.start()
        body = bytes(range(256)) * 20_000
        self.assertEqual(await self.status(transport, body), 200)
        self.assertEqual(await self.status(transport), 200)
        self.assertEqual([request.body == body for request in self.endpoint.requests], [True, False])

    async def test_server_in_node(self):
        if why := missing("node"):
            raise SkipTest(why)
        server = await deferToThread(subprocess.Popen, [program("node"), "-e", NODE], stdout=subprocess.PIPE)
        self.addCleanup(deferToThread, server.wait)
        self.addCleanup(server.stdout.close)
        self.addCleanup(server.kill)
        port = int(await deferToThread(server.stdout.readline))
        transport = self.connect(f"http://127.0.0.1:{port}?token=1")
        for path, (status, body) in {
            "": (200, b"POST /?token=1 {}"),
            "/chunked": (200, b"POST /chunked {}"),
            "/close": (503, b"POST /close {}"),
            "/interim": (200, b"POST /interim {}"),
            "/empty": (204, b""),
        }.items():
            head = Head("POST", f"http://127.0.0.1:{port}{path or '?token=1'}", ())
            for _ in range(3):
                response = await self.result(transport, head=head)
                self.assertEqual((response.status, response.body), (status, body))
        await transport.close()

    async def test_server_of_the_standard_library(self):
        bodies = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.addCleanup(server.server_close)
        self.addCleanup(deferToThread, server.shutdown)
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/hook"
        transport = self.connect(url)
        self.elapsed = []
        for _ in range(3):
            begun = reactor.seconds()
            for number in range(10):
                response = await self.result(transport, b"%d" % number, head=Head("POST", url, ()))
                self.assertEqual((response.status, response.body), (200, b"ok"))
            self.elapsed.append(reactor.seconds() - begun)
        self.assertEqual(bodies, [b"%d" % number for number in range(10)] * 3)
        await transport.close()


class EarlyAnswerContract:
    """
    What a transport keeps when the endpoint answers before it has read a long request. Mix in before the transport contract;
    nothing that reads the whole request first may be in between.
    """

    async def early(self, answer, end, **options):
        """
        Send a long request to an endpoint that answers its beginning, and then reads nothing more.

        :param end: one of :data:`ENDS`.
        :returns: the transport, and the result.
        """

        class Hasty(Connection):
            def dataReceived(self, data):
                self.transport.pauseProducing()
                self.transport.getHandle().send(answer)
                if end == "close":
                    self.transport.loseConnection()
                elif end == "reset":
                    self.transport.abortConnection()

        transport = self.start(**options)
        self.endpoint.protocol = Hasty
        result = await self.result(transport, bytes(16 << 20))
        self.endpoint.protocol = Connection
        return transport, result

    async def test_answer_before_the_end_of_a_long_request(self):
        for status, end in itertools.product((202, 401, 413, 503), ENDS):
            whole = b"HTTP/1.1 %d Early\r\nContent-Length: 4\r\n\r\nlong" % status
            transport, response = await self.early(whole, end)
            self.assertIsInstance(response, Response, f"{status}, {end}: {response}")
            self.assertEqual((response.status, response.body, response.complete), (status, b"long", True))
            await transport.close()

    async def test_answer_before_the_end_of_a_long_request_has_no_end(self):
        for head, end in itertools.product((b"", b"Content-Length: 9\r\n", b"Transfer-Encoding: chunked\r\n"), ENDS):
            transport, response = await self.early(b"HTTP/1.1 413 Early\r\n" + head + b"\r\n4\r\nlo", end, timeout=1.0)
            self.assertIsInstance(response, Response, f"{head}, {end}: {response}")
            self.assertEqual(response.status, 413)
            await transport.close()

    async def test_connection_that_does_not_take_the_rest_of_a_request_is_not_used_again(self):
        whole = b"HTTP/1.1 413 Early\r\nContent-Length: 0\r\n\r\n"
        transport, response = await self.early(whole, "nothing", size=1, timeout=1.0)
        self.assertEqual(response.status, 413)
        handle = self.endpoint.connections[0].transport.getHandle()
        await until(lambda: handle.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        self.assertEqual(await self.status(transport), 200)

    async def test_close_does_not_wait_for_an_endpoint_that_does_not_read(self):
        whole = b"HTTP/1.1 413 Early\r\nContent-Length: 0\r\n\r\n"
        transport, _ = await self.early(whole, "nothing", timeout=600.0)
        await transport.close()
        handle = self.endpoint.connections[0].transport.getHandle()
        await until(lambda: handle.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    async def test_endpoint_may_answer_first_and_read_then(self):
        class Hasty(Connection):
            def dataReceived(self, data):
                if not self.buffer:
                    self.reply(202)
                super().dataReceived(data)

        transport = self.start(lambda request: None)
        self.endpoint.protocol = Hasty
        body = bytes(range(256)) * 20_000
        self.assertEqual(await self.status(transport, body), 202)
        await until(lambda: self.endpoint.requests)
        self.assertTrue(self.endpoint.requests[0].body == body)
