"""Another configuration while events flow."""

import json
import os
import signal
from collections import defaultdict
from itertools import chain
from pathlib import Path
from time import time

import treq
from twisted.internet import reactor
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent

from mqhooks.admin import connections
from mqhooks.app.tap import Options, makeService
from mqhooks.sources.sessions import SessionTable
from mqhooks.testing import make_event
from tests.admin import Follower
from tests.certificates import Authority, key_pem, pem
from tests.endpoints import Endpoint
from tests.frames import envelope, framed
from tests.processes import Twistd
from tests.proxies import Proxy

PROJECT = Path(__file__).parent.parent
RULES = "events = [{ event = on_message_publish }]"
RETRY = "retry { initial = 50ms, max = 50ms, jitter = 0 }"


def payloads(requests):
    """The numbers that arrived, by client, in their order."""
    arrived = defaultdict(list)
    for request in requests:
        bodies = json.loads(request.body)
        for body in bodies if isinstance(bodies, list) else [bodies]:
            arrived[body["from_client_id"]].append(int(body["payload"]))
    return arrived


class BridgeCase(TestCase):
    """A bridge within the test's own process, put together as ``twistd mqhooks`` does it."""

    timeout = 300

    def setUp(self):
        self.directory = Path(self.mktemp()).resolve()
        self.directory.mkdir()
        self.path = self.directory / "mqhooks.conf"
        self.outbox = f'outbox.path = "{self.directory / "outbox"}"'
        self.held = []
        self.logged = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)
        self.number = 0

    def lines(self):
        return [formatEvent(event) for event in self.logged]

    def endpoint(self, answer=None):
        """Start an endpoint; gives it and its address."""
        endpoint = Endpoint(answer)
        return endpoint, endpoint.listen(self, reactor)

    def write(self, *webhooks, ours="", outbox=None):
        """Write the configuration: webhooks as names and what stands in their blocks."""
        blocks = "\n".join(f"{name} {{ {RULES}, {RETRY}, {text} }}" for name, text in webhooks)
        shared = f"merge_window = 0, {self.outbox if outbox is None else outbox}"
        self.path.write_text(f"webhooks {{ {blocks} }}\nmqhooks {{ {shared}\n{ours} }}", encoding="utf-8")

    async def start(self, *args, admin="--admin-port=0"):
        options = Options()
        options.parseOptions(["--config", str(self.path), "--sidecar-port", "0", admin, *args])
        self.service = makeService(options)
        self.service.startService()
        self.addCleanup(self.stop)
        self.bridge = self.service.bridge
        port = self.bridge.sources[0].addresses[0].port
        self.broker = await connectProtocol(HostnameEndpoint(reactor, "127.0.0.1", port), Protocol())
        self.addCleanup(self.broker.transport.abortConnection)

    def stop(self):
        # What is held back would be waited for.
        self.release()
        return self.service.stopService() if self.service.running else None

    def publish(self, *clients):
        """Send a message of each of these clients, numbered."""
        frames = []
        for client in clients:
            message = make_event("on_publish", client_id=client, payload=b"%d" % self.number, topic="t").message
            frames.append(framed(envelope(message)))
            self.number += 1
        self.broker.transport.write(b"".join(frames))

    def hold(self, request):
        """Answer later."""
        self.held.append(request)

    def release(self, status=200):
        """Answer now."""
        held, self.held = self.held, []
        for request in held:
            request.connection.reply(status)

    async def until(self, condition):
        while not condition():
            await deferLater(reactor, 0.01)

    def reload(self):
        """Read it again; gives the lines that it wrote."""
        before = len(self.logged)
        self.service.reloader.reload()
        return [formatEvent(event) for event in self.logged[before:]]

    def sink(self, name):
        (sink,) = (each for each in self.bridge.webhooks if each.settings.name == name)
        return sink


class ReloadTests(BridgeCase):
    async def test_nothing_changed(self):
        endpoint, url = self.endpoint()
        self.write(("a", f'url = "{url}"'))
        await self.start()
        before = self.sink("a")
        self.assertEqual(self.reload(), ["configuration reloaded: nothing changed"])
        self.assertIs(self.sink("a"), before)
        self.publish("c")
        await self.until(lambda: endpoint.requests)

    async def register(self, client):
        """Send a registration, and wait until it was read."""
        before = self.bridge.sources[0].factory.counters.hooks["on_register"]
        self.broker.transport.write(framed(envelope(make_event("on_register", client_id=client).message)))
        await self.until(lambda: self.bridge.sources[0].factory.counters.hooks["on_register"] > before)

    async def test_usernames_are_remembered_while_a_rule_needs_them(self):
        _, url = self.endpoint()
        without = f'webhooks.a {{ url = "{url}", events = [{{ event = on_message_publish }}] }}\nmqhooks {{ {self.outbox} }}'
        self.path.write_text(without, encoding="utf-8")
        await self.start()
        sessions = self.bridge.sources[0].factory.sessions
        await self.register("a")
        self.assertEqual(len(sessions), 0)
        self.path.write_text(without.replace("on_message_publish", "on_session_terminated"), encoding="utf-8")
        self.reload()
        await self.register("b")
        self.assertEqual(len(sessions), 1)
        self.path.write_text(without, encoding="utf-8")
        self.reload()
        self.assertEqual(len(sessions), 0)

    async def test_usernames_are_remembered_for_other_sinks(self):
        _, url = self.endpoint()
        self.write(("a", f'url = "{url}"'))
        await self.start("--sink", f"log:path={self.directory / 'log'}")
        await self.register("a")
        self.assertEqual(len(self.bridge.sources[0].factory.sessions), 1)

    async def changed(self, outbox=None, more=""):
        """Change a webhook while attempts are under way, others wait in lanes and others come."""
        first, url = self.endpoint(self.hold)
        self.write(("a", f'url = "{url}", pool_size = 2{more}'), outbox=outbox)
        await self.start()
        clients = ["c", "d", "e", "f", "g"]
        self.publish(*clients * 3)
        await self.until(lambda: self.sink("a").outbox.counts.pending == 15 and len(first.requests) == 2)
        old = self.sink("a")
        second, url = self.endpoint()
        self.write(("a", f'url = "{url}", pool_size = 3, headers.x-new = yes{more}'), outbox=outbox)
        self.assertEqual(self.reload()[-1], "configuration reloaded: webhook a changed")
        self.assertIsNot(self.sink("a"), old)
        self.publish(*clients * 3)
        await self.until(lambda: self.sink("a").outbox.counts.pending == 30)
        self.assertEqual((second.requests, len(first.requests)), ([], 2), "nothing overtakes what is under way")
        self.release()
        await self.until(lambda: not self.sink("a").outbox.counts.pending)
        arrived = payloads([*first.requests, *second.requests])
        self.assertEqual({client: sorted(numbers) for client, numbers in arrived.items()}, arrived)
        self.assertEqual(sorted(chain.from_iterable(arrived.values())), list(range(30)), "each once")
        self.assertEqual({request.header("x-new") for request in second.requests}, {"yes"})
        counters, counts = self.sink("a").counters, self.sink("a").outbox.counts
        self.assertIs(counters, old.counters)
        self.assertEqual((counts.accepted, counts.delivered, counters.attempts), (30, 30, 30))
        self.assertEqual(sum(counters.answers.counts), len(first.requests) + len(second.requests))
        self.assertEqual(first.open, 0)

    async def test_a_changed_webhook_goes_on_with_what_waits(self):
        await self.changed()

    async def test_in_memory_too(self):
        await self.changed("outbox.kind = memory")

    async def test_with_a_merge_window(self):
        await self.changed(more=", merge_window = 100ms")

    async def test_in_batches(self):
        await self.changed(more=", batch { size = 2, linger = 1ms }")

    async def test_with_a_disk_that_is_waited_for(self):
        await self.changed(f"{self.outbox}\noutbox.sync = full")

    async def test_what_fails_under_way_and_what_waits_for_its_retry_goes_to_the_new_address(self):
        def refuse_some(request):
            if json.loads(request.body)["from_client_id"] == "parked":
                request.connection.reply(503)
            else:
                self.hold(request)

        first, url = self.endpoint(refuse_some)
        self.write(("a", f'url = "{url}", retry {{ initial = 1h, max = 1h }}, pool_size = 4'))
        await self.start()
        self.publish("parked", "held", "parked", "held")
        await self.until(lambda: self.held and self.sink("a").counters.failed)
        second, url = self.endpoint()
        self.write(("a", f'url = "{url}"'))
        self.reload()
        self.release(503)
        await self.until(lambda: not self.sink("a").outbox.counts.pending)
        self.assertEqual(payloads(second.requests), {"parked": [0, 2], "held": [1, 3]})
        self.assertEqual(len(first.requests), 2)

    async def test_other_credentials(self):
        endpoint, url = self.endpoint()
        token = self.directory / "token"
        token.write_text("one")
        grant = b'{"access_token": "granted", "token_type": "Bearer"}'
        _, server = self.endpoint(lambda request: request.connection.reply(200, grant))
        for number, (auth, expected) in enumerate(
            {
                'auth.basic { username = "a", password = "b" }': "Basic YTpi",
                "auth.bearer.token = t": "Bearer t",
                f'auth.bearer.token_file = "{token}"': "Bearer one",
                f'auth.oauth2 {{ token_url = "{server}", client_id = a, client_secret = b }}': "Bearer granted",
                "auth.enable = false": None,
            }.items()
        ):
            self.write(("a", f'url = "{url}", {auth}'))
            if number:
                self.assertIn("configuration reloaded: webhook a changed", self.reload()[-1])
            else:
                await self.start()
            self.publish("c")
            await self.until(lambda number=number: len(endpoint.requests) > number)
            self.assertEqual(endpoint.requests[-1].header("authorization"), expected)

    async def test_another_proxy(self):
        endpoint, url = self.endpoint()
        proxies = [Proxy(reactor), Proxy(reactor)]
        ports = [proxy.listen(self) for proxy in proxies]
        for number, port in enumerate(ports):
            self.write(("a", f'url = "{url}", proxy = "http://127.0.0.1:{port}"'))
            if number:
                self.assertIn("configuration reloaded: webhook a changed", self.reload()[-1])
            else:
                await self.start()
            self.publish("c")
            await self.until(lambda number=number: len(endpoint.requests) > number)
        self.assertEqual([[place for _, place, _ in proxy.requests] for proxy in proxies], [[url], [url]])

    async def test_an_endpoint_that_is_down_is_left_at_once(self):
        self.write(("a", 'url = "http://127.0.0.1:1/", retry { initial = 1h, max = 1h }'))
        await self.start()
        self.publish("c", "d")
        await self.until(lambda: self.sink("a").down_since is not None and self.sink("a").outbox.counts.pending == 2)
        second, url = self.endpoint()
        self.write(("a", f'url = "{url}"'))
        self.reload()
        await self.until(lambda: len(second.requests) == 2)
        self.assertIsNone(self.sink("a").down_since)

    async def test_the_last_error_outlives_a_change(self):
        _, url = self.endpoint(lambda request: request.connection.reply(503, b"come back on Monday"))
        self.write(("a", f'url = "{url}?key=sesame"'))
        await self.start()
        self.publish("c")
        await self.until(lambda: self.sink("a").failure)
        failure, refusal = self.sink("a").failure, self.sink("a").refusal
        self.write(("a", 'url = "http://127.0.0.1:1/", cancel_timeout = 9s'))
        self.reload()
        self.assertEqual((self.sink("a").failure, self.sink("a").refusal), (failure, refusal))
        self.assertEqual((refusal.status, refusal.body), (503, b"come back on Monday"))
        self.assertIn("answered 503", failure.reason)
        # The new URL does not tell what of the old one is a secret.
        self.assertNotIn("sesame", failure.reason)

    async def test_changed_again_before_the_first_change_is_through(self):
        _, url = self.endpoint(self.hold)
        self.write(("a", f'url = "{url}"'))
        await self.start()
        self.publish("c", "c")
        await self.until(lambda: self.held and self.sink("a").outbox.counts.pending == 2)
        second, skipped = self.endpoint()
        self.write(("a", f'url = "{skipped}"'))
        self.reload()
        self.write(("b", f'url = "{url}"'))
        self.assertIn("webhook b added, webhook a removed", self.reload()[-1])
        third, url = self.endpoint()
        self.write(("a", f'url = "{url}"'))
        self.assertIn("webhook a added, webhook b removed", self.reload()[-1])
        self.release()
        await self.until(lambda: len(third.requests) == 1 and not self.sink("a").outbox.counts.pending)
        self.assertEqual((payloads(third.requests), second.requests), ({"c": [1]}, []))

    async def test_added_and_removed(self):
        endpoint, url = self.endpoint()
        broken, refusing = self.endpoint(self.hold)
        self.write(("a", f'url = "{refusing}"'))
        await self.start()
        self.publish("c", "c", "c")
        await self.until(lambda: self.held and self.sink("a").outbox.counts.pending == 3)
        self.write(("b", f'url = "{url}"'))
        self.assertIn("configuration reloaded: webhook b added, webhook a removed", self.reload())
        self.assertEqual([each.settings.name for each in self.bridge.webhooks], ["b"])
        self.publish("c")
        await self.until(lambda: len(endpoint.requests) == 1)
        self.release()
        gone = "webhook a is no longer configured: 2 deliveries stay in the outbox"
        await self.until(lambda: gone in self.lines())
        self.write(("b", f'url = "{url}"'), ("a", f'url = "{url}"'))
        self.assertIn("configuration reloaded: webhook a added", self.reload())
        await self.until(lambda: len(endpoint.requests) == 3)
        self.assertEqual(payloads(endpoint.requests), {"c": [3, 1, 2]})
        # Its counters go on.
        await self.until(lambda: self.sink("a").outbox.counts.delivered == 3)
        self.assertEqual(len(broken.requests), 1)

    async def test_one_that_is_removed_holds_nobody_up(self):
        endpoint, url = self.endpoint()
        _, refusing = self.endpoint(self.hold)
        full = "outbox.kind = memory, outbox.max_size = 1MiB"
        self.write(("a", f'url = "{refusing}"'), outbox=full)
        await self.start()
        sidecar = self.bridge.sources[0].factory
        payload = b"x" * 100_000
        message = framed(envelope(make_event("on_publish", client_id="c", payload=payload, topic="t").message))
        while not sidecar.braked:
            self.broker.transport.write(message)
            await deferLater(reactor, 0.01)
        self.write(("b", f'url = "{url}"'), outbox=full)
        self.reload()
        self.assertFalse(sidecar.braked)
        self.broker.transport.write(message)
        await self.until(lambda: endpoint.requests)
        self.release()
        await self.until(lambda: any("a is no longer configured" in line for line in self.lines()))
        await self.service.stopService()
        self.assertRegex("\n".join(self.lines()), r"webhook a is no longer configured: \d+ deliveries in memory are lost")

    async def test_stopping_while_a_change_waits(self):
        for outbox, left in (("outbox.kind = memory", 0), (None, 2)):
            _, url = self.endpoint(self.hold)
            self.write(("a", f'url = "{url}"'), outbox=outbox, ours="shutdown_timeout = 500ms")
            await self.start()
            self.publish("c", "c")
            await self.until(lambda: self.held and self.sink("a").outbox.counts.pending == 2)
            second, url = self.endpoint()
            self.write(("a", f'url = "{url}"'), outbox=outbox, ours="shutdown_timeout = 500ms")
            self.reload()
            await self.service.stopService()
            self.held.clear()
            self.assertEqual((self.sink("a").outbox.counts.pending, len(second.requests)), (left, 2 - left))

    async def test_a_paused_one_stays_paused(self):
        endpoint, url = self.endpoint()
        self.write(("a", f'url = "{url}"'))
        await self.start()
        end = time() + 3600
        self.sink("a").pause(end)
        self.publish("c")
        await self.until(lambda: self.sink("a").outbox.counts.pending)
        self.write(("a", f'url = "{url}", headers.x-new = yes'))
        self.reload()
        await self.until(lambda: self.sink("a").running)
        self.assertEqual((self.sink("a").paused, self.sink("a").paused_until), (True, end))
        self.publish("d")
        await self.until(lambda: self.sink("a").outbox.counts.pending == 2)
        self.assertEqual(endpoint.requests, [])
        self.sink("a").resume()
        await self.until(lambda: len(endpoint.requests) == 2)

    async def test_a_wrong_one_changes_nothing(self):
        endpoint, url = self.endpoint()
        self.write(("a", f'url = "{url}"'))
        await self.start()
        before, settings = self.sink("a"), self.bridge.settings
        missing = self.directory / "missing.pem"
        broken = self.directory / "broken.pem"
        broken.write_text("nothing", encoding="utf-8")
        for text, reason in (
            ("webhooks {", str(self.path)),
            ("", "no webhook is enabled"),
            (f'webhooks.a {{ url = "nowhere", {RULES} }}', "webhooks.a.url"),
            (f'webhooks.a {{ url = "https://h/", {RULES}, tls.cacertfile = "{missing}" }}', "missing.pem does not exist"),
            (
                f'webhooks {{ b {{ url = "{url}" }}, a {{ url = "https://h/", tls.cacertfile = "{broken}" }} }}',
                f"{self.path}:1: webhooks.a.tls.cacertfile: {broken} holds no PEM certificate",
            ),
        ):
            self.path.write_text(text, encoding="utf-8")
            (line,) = self.reload()
            self.assertTrue(line.startswith("reload failed, keeping the current configuration: "), line)
            self.assertIn(reason, line)
            self.assertNotIn("\n", line)
        self.path.unlink()
        (line,) = self.reload()
        self.assertIn("cannot be read: No such file or directory", line)
        self.assertEqual((self.bridge.webhooks, self.bridge.settings), ([before], settings))
        self.publish("c")
        await self.until(lambda: endpoint.requests)

    async def test_limits_of_the_outbox_change(self):
        _, url = self.endpoint()
        self.write(("a", f'url = "{url}"'))
        await self.start()
        sink = self.sink("a")
        self.write(("a", f'url = "{url}"'), ours="outbox { max_size = 5MiB, on_full = drop_oldest, dead_max = 2 }")
        self.assertEqual(
            self.reload(),
            ["configuration reloaded: outbox.max_size changed, outbox.on_full changed, outbox.dead_max changed"],
        )
        self.assertIs(self.sink("a"), sink)
        self.assertEqual(sink.outbox.max_size, 5 << 20)
        outbox = self.bridge.settings.outbox
        self.assertEqual((outbox.max_size, outbox.on_full, outbox.dead_max), (5 << 20, "drop_oldest", 2))

    async def test_more_room_ends_backpressure(self):
        endpoint, url = self.endpoint(self.hold)
        self.write(("a", f'url = "{url}"'), outbox="outbox { kind = memory, max_size = 1MiB }")
        await self.start()
        payload = b"1" + b" " * 100_000
        message = framed(envelope(make_event("on_publish", client_id="c", payload=payload, topic="t").message))
        while not self.bridge.sources[0].factory.braked:
            self.broker.transport.write(message)
            await deferLater(reactor, 0.01)
        self.write(("a", f'url = "{url}"'), outbox="outbox { kind = memory, max_size = 100MiB }")
        self.assertEqual(self.reload(), ["configuration reloaded: outbox.max_size changed"])
        self.assertFalse(self.bridge.sources[0].factory.braked)
        endpoint.answer = lambda request: request.connection.reply()
        self.release()
        await self.until(lambda: not self.sink("a").outbox.counts.pending)

    async def test_dead_letters_in_memory(self):
        _, url = self.endpoint()
        self.write(("a", f'url = "{url}"'), outbox="outbox.kind = memory")
        await self.start()
        self.assertEqual(self.sink("a").outbox.dead_letters.maxlen, 1000)
        for said, kept in (("dead_max = 2", 2), ("", 1000)):
            self.write(("a", f'url = "{url}"'), outbox=f"outbox {{ kind = memory, {said} }}")
            self.reload()
            self.assertEqual(self.sink("a").outbox.dead_letters.maxlen, kept)

    async def test_what_needs_a_restart(self):
        _, url = self.endpoint()
        self.write(("a", f'url = "{url}"'))
        await self.start(admin="--admin-port=0")
        more = """
            outbox { path = "/elsewhere", sync = full, dead_max = 3 }, shutdown_timeout = 3s
        """
        self.write(("a", f'url = "{url}"'), ours=more)
        keys = "outbox.path, outbox.sync, shutdown_timeout"
        for changed in ("outbox.dead_max changed", "nothing changed"):
            expected = [f"configuration reloaded: {changed}", f"these changes need a restart: {keys}"]
            self.assertEqual(self.reload(), expected)
        self.assertEqual(self.bridge.settings.outbox.path, str(self.directory / "outbox"))
        self.write(("a", f'url = "{url}"'), outbox="outbox { kind = memory, max_size = 5MiB }")
        self.assertEqual(self.reload()[1].partition(":")[0], "these changes need a restart")
        self.assertEqual(self.bridge.settings.outbox.kind, "sqlite")

    async def test_the_first_webhook_needs_one_too(self):
        self.path.write_text("mqhooks.shutdown_timeout = 1s", encoding="utf-8")
        await self.start("--sink", f"log:path={self.directory / 'events'}")
        _, url = self.endpoint()
        self.write(("a", f'url = "{url}"'))
        (line,) = self.reload()
        self.assertIn("there was no webhook at the start, so webhook a has no outbox: restart mqhooks", line)
        self.path.write_text("mqhooks { shutdown_timeout = 1s, admin.hosts = [h] }", encoding="utf-8")
        self.assertEqual(self.reload(), ["configuration reloaded: admin.hosts changed"])

    async def test_warnings_are_repeated(self):
        _, url = self.endpoint()
        self.write(("a", f'url = "{url}"'))
        await self.start()
        self.write(("a", f'url = "{url}", headerz {{}}'))
        self.assertIn("webhooks.a.headerz: unknown, ignored; did you mean 'headers'?", self.reload()[0])

    async def test_certificates_that_were_renewed(self):
        authority = self.directory / "ca.pem"
        authority.write_bytes(pem(Authority().certificate))
        self.write(("a", f'url = "https://127.0.0.1:1/", tls.cacertfile = "{authority}"'))
        await self.start()
        before = self.sink("a")
        os.utime(authority)
        self.assertEqual(self.reload(), ["configuration reloaded: nothing changed"])
        authority.write_bytes(pem(Authority("Another").certificate))
        self.assertIn("configuration reloaded: webhook a changed", self.reload())
        self.assertIsNot(self.sink("a"), before)
        authority.write_bytes(key_pem(Authority().key))
        (line,) = self.reload()
        self.assertIn(f"{self.path}:1: webhooks.a.tls.cacertfile: {authority} holds no PEM certificate", line)

    async def test_who_may_see_the_page(self):
        # The stream has ended long before its connection.
        self.patch(connections, "IDLE", 0.5)
        _, url = self.endpoint()
        old, new = "an-old-token-of-24-chars", "a-new-token-of-24-chars"
        self.write(("a", f'url = "{url}"'), ours=f'admin {{ listen = "tcp:0", token = "{old}" }}')
        await self.start(admin="--log-format=text")
        watcher = await self.watch(old)
        self.write(("a", f'url = "{url}"'), ours=f'admin {{ listen = "tcp:0", token = "{old}", hosts = [h] }}')
        self.assertEqual(await self.ask(old, "h"), 403)
        self.assertEqual(self.reload(), ["configuration reloaded: admin.hosts changed"])
        self.assertEqual(await self.ask(old, "h"), 200)
        self.assertNoResult(watcher.closed)
        self.write(("a", f'url = "{url}"'), ours=f'admin {{ listen = "tcp:0", token = "{new}" }}')
        self.assertEqual(self.reload(), ["configuration reloaded: admin.token changed, admin.hosts changed"])
        await watcher.closed
        self.assertEqual((await self.ask(old), await self.ask(new), await self.ask(new, "h")), (401, 200, 403))

    async def ask(self, token, host="127.0.0.1"):
        """Ask the API; gives the status."""
        url = f"http://127.0.0.1:{self.service.admin.address.port}/api/status"
        agent = Agent(reactor)
        headers = {"Authorization": f"Bearer {token}", "Host": host}
        response = await treq.get(url, headers=headers, agent=agent, reactor=reactor)
        await treq.content(response)
        return response.code

    async def watch(self, token):
        """Follow the stream of the status page until it has begun."""
        port = self.service.admin.address.port
        follower = await connectProtocol(HostnameEndpoint(reactor, "127.0.0.1", port), Follower())
        request = ["GET /api/stream HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Authorization: Bearer {token}", "", ""]
        follower.transport.write("\r\n".join(request).encode())
        self.addCleanup(follower.transport.abortConnection)
        await self.until(lambda: follower.buffer)
        return follower

    async def test_a_page_for_others_needs_a_token(self):
        _, url = self.endpoint()
        others = 'admin { listen = "tcp:0:interface=0.0.0.0"'
        self.write(("a", f'url = "{url}"'), ours=f'{others}, token = "a-token-of-24-characters" }}')
        await self.start(admin="--log-format=text")
        self.write(("a", f'url = "{url}"'), ours=f"{others} }}")
        (line,) = self.reload()
        self.assertIn("keeping the current configuration: ", line)
        self.assertIn("other machines can reach the status page, and it has no token", line)


class PartTests(SynchronousTestCase):
    def test_the_unit_checks_before_it_sends_the_signal(self):
        lines = (PROJECT / "packaging" / "mqhooks.service").read_text().splitlines()
        start = next(line.partition("=")[2] for line in lines if line.startswith("ExecStart="))
        reload = [line.partition("=")[2] for line in lines if line.startswith("ExecReload=")]
        self.assertEqual(reload, [f"{start} --check", "/bin/kill -HUP $MAINPID"])

    def test_fewer_sessions(self):
        table = SessionTable(10)
        for number in range(10):
            table.see(make_event("on_register", client_id=f"c{number}", username="u"))
        table.limit(3, 1000, needed=True)
        named = [table.see(make_event("on_session_expired", client_id=f"c{number}")).username for number in range(10)]
        self.assertEqual(named, [""] * 7 + ["u"] * 3)
        table.limit(0, 1000, needed=True)
        table.see(make_event("on_register", client_id="c", username="u"))
        self.assertEqual(len(table), 0)


class ProcessTests(TestCase):
    """SIGHUP, as systemd sends it."""

    timeout = 240

    def setUp(self):
        self.directory = Path(self.mktemp()).resolve()
        self.directory.mkdir()
        self.path = self.directory / "mqhooks.conf"

    def write(self, text, name="billing"):
        outbox = self.directory / "outbox"
        # As an editor does it: there is never half a file.
        new = self.directory / "new.conf"
        new.write_text(f'webhooks.{name} {{ {RULES}, {text} }}\nmqhooks.outbox.path = "{outbox}"', encoding="utf-8")
        new.rename(self.path)

    async def start(self, *args):
        bridge = Twistd(self, "mqhooks", "--sidecar-port", "0", "--admin-port", "0", *args)
        match = await bridge.until(r"listening for VerneMQ on 127\.0\.0\.1:(\d+)", anywhere=True)
        self.target = f"tcp:127.0.0.1:{match[1]}"
        return bridge

    async def hangup(self, bridge, expected):
        """Send the signal until the end of the log says so: each has its own line."""
        begin = len(bridge.stdout)
        bridge.process.signalProcess(signal.SIGHUP)
        while expected not in bridge.stdout[begin:]:
            self.assertIsNotNone(bridge.process.pid, bridge.stdout + bridge.stderr)
            await deferLater(reactor, 0.02)

    async def test_changes_while_events_flow(self):
        received = []

        def answer(request):
            received.append(request)
            # Some are always under way, and with few connections more comes than goes.
            reactor.callLater(0.005, request.connection.reply)

        endpoints = [Endpoint(answer), Endpoint(answer)]
        urls = [endpoint.listen(self, reactor) for endpoint in endpoints]
        self.write(f'url = "{urls[0]}"')
        bridge = await self.start("--config", str(self.path))
        count, enough = 6000, 5000
        simulator = Twistd(
            self,
            "mqhooks-simulate",
            *("--target", self.target, "--count", str(count), "--mix", "on_publish=1", "--seed", "7"),
            *("--connections", "1", "--rate", "1500", "--clients", "40"),
        )
        sent = simulator.until(rf"sent {count} events .* on_publish (\d+)")
        changed = "configuration reloaded: webhook billing changed"

        async def some():
            before = len(received)
            while len(received) < min(before + 300, enough):
                await deferLater(reactor, 0.02)

        for text in (
            f'url = "{urls[1]}"',
            f'url = "{urls[1]}", pool_size = 3',
            f'url = "{urls[0]}", pool_size = 64, headers.x-new = yes',
            f'url = "{urls[1]}", merge_window = 0',
            f'url = "{urls[1]}", merge_window = 0, details = true, secret = "whsec_{"A" * 32}"',
            f'url = "{urls[0]}", merge_window = 0, cancel_timeout = 9s',
        ):
            await some()
            self.write(text)
            await self.hangup(bridge, changed)
            await some()
            self.path.write_text("webhooks {", encoding="utf-8")
            await self.hangup(bridge, "reload failed, keeping the current configuration: ")
            self.write(text)
            await self.hangup(bridge, "configuration reloaded: nothing changed")
        count = int((await sent)[1])
        while len(received) < count:
            await deferLater(reactor, 0.05)
        # What came twice would have come by now: the process has nothing left when it ends.
        bridge.process.signalProcess("TERM")
        await bridge.ended
        self.assertNotIn("Traceback", bridge.stdout + bridge.stderr)
        self.assertEqual(len(received), count)
        self.assertEqual(len({request.header("webhook-id") for request in received}), count)
        self.assertTrue(all(endpoint.requests for endpoint in endpoints))
        order = defaultdict(list)
        for request in received:
            body = json.loads(request.body)
            order[body["from_client_id"]].append(json.loads(body["payload"])["seq"])
        self.assertGreater(len(order), 10)
        for client, numbers in order.items():
            self.assertEqual(numbers, sorted(numbers), client)

    async def test_without_a_configuration(self):
        endpoint = Endpoint()
        for args in (("--url", endpoint.listen(self, reactor)), ("--sink", f"log:path={self.directory / 'events'}")):
            bridge = await self.start(*args)
            await self.hangup(bridge, "there is no configuration file to reload")
            bridge.process.signalProcess("TERM")
            self.assertEqual((await bridge.ended).signal, signal.SIGTERM)
