"""Tokens of npm's oauth2-mock-server: RFC 6749 by other people."""

from itertools import pairwise

from twisted.internet import reactor

from tests.endpoints import Endpoint
from tests.programs import ProgramsCase, missing_node, said, script
from tests.waiting import until

SECRET = "s3cret-of-the-bridge"


class TokenTests(ProgramsCase):
    skip = missing_node()

    async def serve(self, life):
        """Start a server whose tokens live so many seconds."""
        self.server = script(self, "oauth2.js", "bridge", SECRET, str(life))
        await until(lambda: said(self.server) or self.server.ended.called)
        self.server_url = f"http://127.0.0.1:{said(self.server)[0]['port']}/token"

    async def bridge_to(self, endpoint, secret=SECRET, transport="pooled"):
        url = endpoint.listen(self, reactor)
        self.configure_for(url, secret, transport)
        await self.start()
        (self.webhook,) = self.bridge.webhooks

    def configure_for(self, url, secret=SECRET, transport="pooled"):
        auth = f'token_url = "{self.server_url}", client_id = bridge, client_secret = "{secret}", scope = hooks'
        self.configure(
            f'webhook {{ url = "{url}", transport = {transport}, auth.oauth2 {{ {auth} }}, '
            "retry { initial = 50ms, max = 200ms }, events = [{ event = on_message_publish }] }"
        )

    def asked(self):
        """What the server was asked for."""
        return said(self.server)[1:]

    def used(self, endpoint):
        """The tokens that the endpoint got, each once, in the order in which they came."""
        return list(dict.fromkeys(request.header("authorization").removeprefix("Bearer ") for request in endpoint.requests))

    async def test_renewed_after_three_quarters_of_its_life(self):
        await self.serve(life=2)
        endpoint = Endpoint()
        await self.bridge_to(endpoint)
        number = 0

        async def early():
            nonlocal number
            number += 1
            self.publish("a", "b")
            await until(lambda: len(endpoint.requests) == 2 * number)
            # The first answer of a program that has just begun may take long.
            times = [each["at"] for each in self.asked()[1:]]
            return any(other - one < 1.8 for one, other in pairwise(times))

        began = reactor.seconds()
        await until(early)
        granted = self.asked()
        self.assertGreaterEqual(reactor.seconds() - began, 1.5 * (len(granted) - 1))
        self.assertEqual({(each["granted"], each["form"]["scope"]) for each in granted}, {(True, "hooks")})
        tokens = [each["token"] for each in granted]
        self.assertEqual(self.used(endpoint), tokens[: len(self.used(endpoint))])
        self.assertGreaterEqual(len(self.used(endpoint)), 2)
        self.assertEqual((self.webhook.counters.failed, self.webhook.counters.refused), (0, 0))

    async def test_a_refused_token_is_renewed_once(self):
        await self.serve(life=3600)
        revoked = set()

        def answer(request):
            request.connection.reply(401 if request.header("authorization").removeprefix("Bearer ") in revoked else 200)

        endpoint = Endpoint(answer)
        await self.bridge_to(endpoint)
        self.publish("a", "b", "c")
        await until(lambda: len(endpoint.requests) == 3)
        revoked.add(self.asked()[0]["token"])
        self.publish("a", "b", "c")
        await until(lambda: self.webhook.outbox.counts.delivered == 6)
        first, second = self.asked()
        self.assertEqual(self.used(endpoint), [first["token"], second["token"]])
        self.assertEqual((self.webhook.counters.failed, self.webhook.outbox.counts.dead), (0, 0))

    async def test_another_secret(self):
        """Everything waits, however often it is asked, until the configuration is mended."""
        await self.serve(life=3600)
        endpoint = Endpoint()
        for transport in ("pooled", "treq"):
            self.outbox = f'outbox.path = "{self.directory / f"outbox-{transport}"}"'
            await self.bridge_to(endpoint, "an0ther", transport)
            before = len(self.asked())
            self.publish("a", "b", "c")
            await until(lambda before=before: len(self.asked()) >= before + 2)
            await until(lambda: self.webhook.failure)
            self.assertEqual(self.webhook.failure.reason, f"no token: {self.server_url} answered 401 (invalid_client)")
            self.assertEqual((self.webhook.outbox.counts.pending, endpoint.requests), (3, []))
            self.assertFalse(any(each["granted"] for each in self.asked()[before:]))
            self.configure_for(self.webhook.settings.url, SECRET, transport)
            self.reload()
            await until(lambda: len(endpoint.requests) == 3)
            self.assertEqual(self.used(endpoint), [self.asked()[-1]["token"]])
            self.assertNotIn("an0ther", "\n".join(self.lines()))
            await self.service.stopService()
            endpoint.requests.clear()
