"""Through Debian's tinyproxy, which wants to know who we are."""

from http.client import HTTPConnection

from twisted.internet import reactor
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.internet.threads import deferToThread

from tests.certificates import Authority, key_pem, pem
from tests.endpoints import Endpoint
from tests.programs import ProgramsCase, missing, serve
from tests.test_http_tls import FilesMixin
from tests.test_reload import payloads
from tests.waiting import until

TINYPROXY = """
Port PORT
Listen 127.0.0.1
BasicAuth user p4ss-w0rd
LogLevel Connect
"""
CLIENTS = [f"c{number % 3}" for number in range(12)]


def answer(request):
    """Answer, and end the connection as the proxy asks for: it passes on what follows without looking at it."""
    ends = request.header("connection") == "close"
    request.connection.reply(headers=[("Connection", "close")] if ends else [])
    if ends:
        request.connection.transport.loseConnection()


def answer_to_a_wrong_password(port):
    """Ask the proxy for an address without TLS, and return the status of its answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", "http://127.0.0.1:1/", headers={"Proxy-Authorization": "Basic dXNlcjphbjB0aGVy"})
        return connection.getresponse().status
    finally:
        connection.close()


class TinyproxyTests(FilesMixin, ProgramsCase):
    skip = missing("tinyproxy")

    async def prepare(self):
        """Start the proxy, and an endpoint with TLS and one without."""
        self.proxy, self.port = await serve(self, "tinyproxy", TINYPROXY, lambda path: ["-d", "-c", path])
        authority = Authority()
        certificate, key = authority.issue(addresses=["127.0.0.1"])
        context = DefaultOpenSSLContextFactory(self.file("key.pem", key_pem(key)), self.file("cert.pem", certificate))
        self.plain, self.secure = Endpoint(answer), Endpoint(answer)
        self.url = self.plain.listen(self, reactor)
        secure = self.secure.listen(
            self, reactor, listen=lambda port, *args, **more: reactor.listenSSL(port, *args, context, **more)
        )
        self.secure_url = secure.replace("http://", "https://")
        self.trust = f'tls.cacertfile = "{self.file("ca.pem", pem(authority.certificate))}"'

    def through(self, **users):
        """Configure a webhook for each endpoint, transport and user of the proxy."""
        blocks = [
            f'{name}-{kind}-{transport} {{ url = "{url}/{transport}", proxy = "http://{user}127.0.0.1:{self.port}", {more} '
            f"transport = {transport}, retry {{ initial = 50ms, max = 200ms }}, events = [{{ event = on_message_publish }}] }}"
            for name, user in users.items()
            for kind, url, more in (("http", self.url, ""), ("https", self.secure_url, f"{self.trust},"))
            for transport in ("pooled", "treq")
        ]
        self.configure(f"webhooks {{ {' '.join(blocks)} }}")

    async def test_passed_on_and_by_tunnel(self):
        await self.prepare()
        self.through(known="user:p4ss-w0rd@")
        await self.start()
        self.publish(*CLIENTS)
        await until(lambda: len(self.plain.requests) == len(self.secure.requests) == 24)
        for endpoint in (self.plain, self.secure):
            for transport in ("pooled", "treq"):
                arrived = payloads(request for request in endpoint.requests if request.path == f"/hook/{transport}")
                self.assertEqual(arrived, {client: list(range(int(client[1:]), 12, 3)) for client in CLIENTS})
        # To an endpoint without TLS tinyproxy 1.11 passes it on.
        self.assertEqual({request.header("proxy-authorization") for request in self.secure.requests}, {None})
        failed = {sink.settings.name for sink in self.bridge.webhooks if sink.counters.failed}
        # It ends connections without saying so before, and treq repeats no POST by itself.
        self.assertLessEqual(failed, {"known-http-treq"})
        asked = self.proxy.stdout + self.proxy.stderr
        self.assertIn(f"POST {self.url}/pooled HTTP/1.1", asked)
        self.assertIn(f"CONNECT {self.secure_url.split('/')[2]} HTTP/1.1", asked)
        self.assertNotIn(f"CONNECT {self.url.split('/')[2]}", asked)

    async def test_another_password_and_none(self):
        """A tunnel that is refused says nothing of the deliveries: they wait until the configuration is mended."""
        await self.prepare()
        self.through(wrong="user:an0ther@", nobody="")
        await self.start()
        self.publish("a", "b")
        # Before 1.11.3 tinyproxy says 401 to a wrong password, which only in answer to CONNECT cannot be the endpoint's.
        status = await deferToThread(answer_to_a_wrong_password, self.port)
        self.assertIn(status, (401, 407))
        buried = [self.sink(f"wrong-http-{transport}") for transport in ("pooled", "treq")] if status == 401 else []
        waiting = [sink for sink in self.bridge.webhooks if sink not in buried]
        await until(lambda: all(sink.outbox.counts.dead == 2 for sink in buried))
        await until(lambda: all(sink.failure for sink in waiting))
        self.assertEqual([sink.outbox.counts.pending for sink in waiting], [2] * len(waiting))
        self.assertEqual((self.plain.requests, self.secure.requests), ([], []))
        at = f"the proxy 127.0.0.1:{self.port}"
        for sink in waiting:
            told = (
                "does not accept our user and password"
                if sink.settings.name.startswith("wrong")
                else "requires a user and a password"
            )
            self.assertIn(f"{at} {told}", sink.failure.reason)
        self.assertNotIn("an0ther", "\n".join(self.lines()))
        self.through(wrong="user:p4ss-w0rd@", nobody="user:p4ss-w0rd@")
        self.reload()
        await until(lambda: (len(self.plain.requests), len(self.secure.requests)) == (8 - 2 * len(buried), 8))
