"""Behind Debian's nginx: it limits, fails, ends connections, and wants to know who we are."""

from itertools import chain
from pathlib import Path

from twisted.internet import reactor

from mqhooks.tools.ports import free_port
from tests.certificates import Authority, key_pem, pem
from tests.endpoints import Endpoint
from tests.programs import ProgramsCase, missing, serve
from tests.test_http_tls import FilesMixin
from tests.test_reload import payloads
from tests.waiting import until

NGINX = """
daemon off;
master_process off;
pid FOLDER/pid;
error_log stderr error;
events { worker_connections 256; }
http {
  access_log off;
  client_body_temp_path FOLDER/body;
  proxy_temp_path FOLDER/proxy;
  fastcgi_temp_path FOLDER/fastcgi;
  uwsgi_temp_path FOLDER/uwsgi;
  scgi_temp_path FOLDER/scgi;
  %s
}
"""
RETRY = "retry { initial = 50ms, max = 200ms }"
RULES = "events = [{ event = on_message_publish }]"


class NginxCase(ProgramsCase):
    skip = missing("nginx")

    async def nginx(self, text):
        """Start it with what its http block has to say; returns its port."""
        _, port = await serve(self, "nginx", NGINX % text, lambda path: ["-e", "stderr", "-c", path])
        return port

    async def in_front_of(self, port, *, shared="", server="", location=""):
        """Start it in front of an endpoint; returns its URL."""
        place = f"location / {{ proxy_pass http://127.0.0.1:{port}; {location} }}"
        return f"http://127.0.0.1:{await self.nginx(f'{shared} server {{ listen 127.0.0.1:PORT; {server} {place} }}')}/hook"

    def assert_each_once_in_order(self, endpoint, number):
        arrived = payloads(endpoint.requests)
        self.assertEqual(sorted(chain.from_iterable(arrived.values())), list(range(number)))
        for client, numbers in arrived.items():
            self.assertEqual(numbers, sorted(numbers), client)


class LimitTests(NginxCase):
    async def test_too_many_at_once(self):
        """With 429 and 503 alike everything arrives, in order."""
        for status in (429, 503):
            endpoint, url = self.endpoint()
            url = await self.in_front_of(
                endpoint.port.getHost().port,
                shared="limit_req_zone $binary_remote_addr zone=all:64k rate=200r/s;",
                location=f"limit_req zone=all burst=6 nodelay; limit_req_status {status};",
            )
            self.outbox = f'outbox.path = "{self.directory / f"outbox-{status}"}"'
            self.number = 0
            self.configure(f'webhook {{ url = "{url}", pool_size = 8, {RETRY}, {RULES} }}')
            await self.start()
            (sink,) = self.bridge.webhooks
            for _ in range(5):
                self.publish(*(f"c{number}" for number in range(20)))
            await until(lambda endpoint=endpoint: len(endpoint.requests) >= 100, 60)
            self.assertEqual((sink.refusal.status, sink.counters.failed), (status, sink.counters.failures["status"]))
            # Below the limit, each success lets one more be in flight.
            while sink.in_flight_limit < 8:
                before = len(endpoint.requests)
                self.publish("c0", "c1", "c2")
                await until(lambda endpoint=endpoint, before=before: len(endpoint.requests) == before + 3)
            self.assert_each_once_in_order(endpoint, self.number)
            await self.service.stopService()
            self.assertEqual(sink.outbox.counts.dead, 0)

    async def test_half_as_many_are_in_flight(self):
        endpoint, _ = self.endpoint(self.hold)
        url = await self.in_front_of(
            endpoint.port.getHost().port,
            shared="limit_req_zone $binary_remote_addr zone=all:64k rate=1r/m;",
            location="limit_req zone=all burst=6 nodelay; limit_req_status 429;",
        )
        self.configure(f'webhook {{ url = "{url}", pool_size = 8, retry {{ initial = 60s, max = 60s }}, {RULES} }}')
        await self.start()
        (sink,) = self.bridge.webhooks
        self.publish(*(f"c{number}" for number in range(8)))
        await until(lambda: len(endpoint.requests) == 7 and sink.counters.failed == 1)
        self.assertEqual((sink.in_flight_limit, sink.refusal.status), (4, 429))
        self.release()
        await until(lambda: sink.outbox.counts.delivered == 7)
        self.assertEqual(sink.in_flight_limit, 8)


class ConnectionTests(NginxCase):
    async def test_connections_that_end_after_a_few_requests(self):
        endpoint, _ = self.endpoint()
        url = await self.in_front_of(endpoint.port.getHost().port, server="keepalive_requests 3;")
        for transport in ("pooled", "treq"):
            endpoint.requests.clear()
            self.outbox = f'outbox.path = "{self.directory / f"outbox-{transport}"}"'
            self.number = 0
            self.configure(f'webhook {{ url = "{url}", transport = {transport}, {RETRY}, {RULES} }}')
            await self.start()
            for _ in range(5):
                self.publish(*(f"c{number}" for number in range(20)))
            await until(lambda: len(endpoint.requests) >= 100)
            await self.service.stopService()
            self.assertEqual(self.bridge.webhooks[0].counters.failed, 0)
            self.assert_each_once_in_order(endpoint, 100)

    async def test_nobody_behind_it(self):
        """It answers 502 until the endpoint is back."""
        port = free_port()
        url = await self.in_front_of(port)
        self.configure(f'webhook {{ url = "{url}", {RETRY}, {RULES} }}')
        await self.start()
        (sink,) = self.bridge.webhooks
        self.publish(*(f"c{number % 5}" for number in range(20)))
        await until(lambda: sink.counters.failures["status"] >= 5)
        self.assertEqual(sink.refusal.status, 502)
        endpoint = Endpoint()
        endpoint.listen(self, reactor, port)
        await until(lambda: len(endpoint.requests) >= 20)
        self.assert_each_once_in_order(endpoint, 20)


class TLSTests(FilesMixin, NginxCase):
    async def test_it_wants_a_certificate_of_ours(self):
        authority, ours = Authority(), Authority("Clients")
        certificate, key = authority.issue(addresses=["127.0.0.1"])
        endpoint, _ = self.endpoint()
        port = await self.nginx(
            f"""server {{
              listen 127.0.0.1:PORT ssl;
              ssl_certificate {self.absolute("server.pem", certificate)};
              ssl_certificate_key {self.absolute("server.key", key_pem(key))};
              ssl_client_certificate {self.absolute("clients.pem", pem(ours.certificate))};
              ssl_verify_client on;
              location / {{
                proxy_set_header X-Verified $ssl_client_verify;
                proxy_set_header X-Subject $ssl_client_s_dn;
                proxy_pass http://127.0.0.1:{endpoint.port.getHost().port};
              }}
            }}"""
        )
        certificate, key = ours.issue(common_name="bridge-1")
        trust = f'cacertfile = "{self.absolute("ca.pem", pem(authority.certificate))}"'
        pair = f'certfile = "{self.absolute("cert.pem", certificate)}", keyfile = "{self.absolute("key.pem", key_pem(key))}"'
        for transport in ("pooled", "treq"):
            endpoint.requests.clear()
            self.outbox = f'outbox.path = "{self.directory / f"outbox-{transport}"}"'
            url = f'url = "https://127.0.0.1:{port}/hook", transport = {transport}, {RETRY}, {RULES}'
            self.configure(
                f"webhooks {{ known {{ {url}, tls {{ {trust}, {pair} }} }}\nunknown {{ {url}, tls {{ {trust} }} }} }}"
            )
            await self.start()
            known, unknown = self.bridge.webhooks
            self.publish("a", "b")
            await until(lambda: len(endpoint.requests) == 2 and unknown.outbox.counts.dead == 2)  # noqa: B023
            told = {(request.header("x-verified"), request.header("x-subject")) for request in endpoint.requests}
            self.assertEqual(told, {("SUCCESS", "CN=bridge-1")})
            self.assertEqual((unknown.refusal.status, known.counters.failed), (400, 0))
            self.assertIn(b"No required SSL certificate was sent", unknown.refusal.body)
            await self.service.stopService()

    def absolute(self, name, content):
        return str(Path(self.file(name, content)).resolve())
