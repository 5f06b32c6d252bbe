"""Who is let through to the status page."""

import os
import re
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.admin.settings import AdminSettings
from mqhooks.support.listening import is_local, is_loopback
from tests.admin import ANYWHERE, TOKEN, AdminCase, Follower
from tests.waiting import until

BEARER = {"Authorization": f"Bearer {TOKEN}"}
PAUSE = "/api/webhooks/billing/pause"


class HostTests(AdminCase):
    async def test_only_known_hosts_are_admitted(self):
        await self.start(admin=AdminSettings(ANYWHERE, None, ("mqhooks.example", "10.1.2.3")))
        good = (
            "127.0.0.1",
            "127.8.9.1",
            "localhost",
            "LocalHost.",
            "[::1]",
            "mqhooks.example",
            "MQHOOKS.example:443",
            "10.1.2.3",
        )
        for host in (*good, f"localhost:{self.port}"):
            await self.json("/api/status", headers={"Host": host})
        bad = (
            "evil.example",
            "localhost.evil.example",
            "10.1.2.4",
            "[::2]",
            "",
            "user@localhost",
            "localhost:x",
            "localhost/",
            "[::1",
            "0",
        )
        for host in bad:
            self.assertIn("mqhooks.admin.hosts", await self.refused(403, "/healthz", headers={"Host": host}))
        await self.refused(403, PAUSE, "POST", headers={"Host": "evil.example"})
        self.assertFalse(self.sinks[0].paused)

    async def test_two_hosts_are_none(self):
        await self.start()
        follower = await self.follow("/api/status", Host="localhost")
        await until(lambda: b"\r\n\r\n" in follower.buffer)
        self.assertRegex(follower.buffer.decode(), r"^HTTP/1\.1 40[03] ")

    async def test_foreign_origins_are_refused(self):
        await self.start()
        for origin in (self.origin, self.origin.upper()):
            await self.json(PAUSE, "POST", headers={"Origin": origin})
        self.sinks[0].resume()
        for origin in ("null", "http://evil.example", f"http://127.0.0.1:{self.port + 1}", "http://127.0.0.1", "x"):
            for method, path in (("GET", "/api/status"), ("POST", PAUSE)):
                await self.refused(403, path, method, headers={"Origin": origin})
        self.assertFalse(self.sinks[0].paused)

    async def test_leave_is_never_given(self):
        await self.start()
        asked = {
            "Origin": "http://evil.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "x-mqhooks",
        }
        await self.refused(403, PAUSE, "OPTIONS", headers=asked, change=False)
        self.assertEqual([name for name in self.headers if name.startswith("access-control")], [])

    async def test_what_changes_something_needs_the_header(self):
        await self.start()
        await self.bury(1)
        changing = [
            ("POST", PAUSE),
            ("POST", "/api/webhooks/billing/resume"),
            ("POST", "/api/dead-letters/1/replay"),
            ("POST", "/api/dead-letters/1/purge"),
            ("DELETE", "/api/dead-letters/1"),
            ("POST", "/api/dead-letters/replay"),
            ("POST", "/api/dead-letters/purge"),
        ]
        for method, path in changing:
            reason = await self.refused(403, path, method, change=False, body={"all": True})
            self.assertIn("X-Mqhooks: 1", reason)
        self.assertEqual((self.sinks[0].paused, self.sinks[0].outbox.letters), (False, 1))


class TokenTests(AdminCase):
    async def test_all_but_the_page_and_healthz_need_the_token(self):
        await self.start(admin=AdminSettings(ANYWHERE, TOKEN))
        locked = ["/api/status", "/api/config", "/api/dead-letters", "/api/stream", "/metrics", "/readyz", "/nothing"]
        for path in locked:
            self.assertIn("mqhooks.admin.token", await self.refused(401, path))
            self.assertEqual(self.headers["www-authenticate"], 'Bearer realm="mqhooks"')
        await self.refused(401, PAUSE, "POST")
        self.assertFalse(self.sinks[0].paused)
        await self.json("/healthz")
        for path in ("/", "/page.js", "/page.css"):
            self.assertEqual((await self.ask(path))[0], 200)
        for path in locked[:3]:
            await self.json(path, headers=BEARER)
        self.assertEqual((await self.ask("/metrics", headers=BEARER))[0], 200)
        await self.json(PAUSE, "POST", headers=BEARER)
        follower = await self.follow("/api/stream", Authorization=f"Bearer {TOKEN}")
        await until(lambda: follower.heard("status"))

    async def test_wrong_tokens_are_refused(self):
        await self.start(admin=AdminSettings(ANYWHERE, TOKEN))
        wrong = (
            TOKEN,
            f"Basic {TOKEN}",
            "Bearer",
            "Bearer ",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            "Bearer ü",
            f"Bearer {TOKEN.upper()}",
        )
        for value in wrong:
            await self.refused(401, "/api/status", headers={"Authorization": value})
        await self.json("/api/status", headers={"Authorization": f"bearer {TOKEN}"})
        await self.refused(401, f"/api/status?token={TOKEN}")

    async def test_the_token_does_not_replace_host_and_header(self):
        await self.start(admin=AdminSettings(ANYWHERE, TOKEN))
        await self.refused(403, PAUSE, "POST", headers=BEARER, change=False)
        await self.refused(403, PAUSE, "POST", headers=BEARER | {"Host": "evil.example"})


class HeaderTests(AdminCase):
    async def test_every_response_has_the_security_headers(self):
        await self.start(admin=AdminSettings(ANYWHERE, TOKEN))
        for path in ("/", "/page.js", "/healthz", "/api/status", "/nothing", "/metrics"):
            for headers in ({}, BEARER):
                await self.ask(path, headers=headers)
                policy = dict(part.strip().split(" ", 1) for part in self.headers["content-security-policy"].split(";"))
                self.assertEqual(policy["default-src"], "'none'")
                for kind in ("script", "style", "connect"):
                    self.assertEqual(policy[f"{kind}-src"], "'self'")
                self.assertEqual(policy["frame-ancestors"], "'none'")
                self.assertEqual(self.headers["x-content-type-options"], "nosniff")
                self.assertEqual(self.headers["cache-control"], "no-store")
                self.assertEqual(self.headers["referrer-policy"], "no-referrer")
                self.assertIn(self.headers["server"], ("mqhooks",))


class UnixTests(AdminCase):
    async def follow(self):
        await self.start()
        # The whole path may be longer than a socket's may be.
        self.socket = Path(os.path.relpath(self.path.parent / "s"))
        await self.stop()
        self.page = type(self.admin)(reactor, self.bridge, AdminSettings(f"unix:{self.socket}"))
        self.page.startService()
        self.addCleanup(lambda: self.page.stopService() if self.page.running else None)
        follower = await connectProtocol(UNIXClientEndpoint(reactor, str(self.socket)), Follower())
        self.addCleanup(follower.transport.abortConnection)
        return follower

    async def test_stopping_although_the_socket_is_gone(self):
        follower = await self.follow()
        self.socket.unlink()
        await self.page.stopService()
        await follower.closed
        # Twisted has not stopped the factory: it stumbled over the socket.
        for timer in reactor.getDelayedCalls():
            timer.cancel()

    async def test_a_socket_is_local(self):
        follower = await self.follow()
        follower.transport.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: follower.buffer.endswith(b"}"))
        self.assertTrue(re.match(rb"HTTP/1\.1 200 ", follower.buffer))


class LocalTests(SynchronousTestCase):
    def test_descriptions(self):
        local = (
            "tcp:8891",
            "tcp:port=8891",
            "tcp:8891:interface=127.0.0.1",
            "tcp:8891:interface=127.0.0.2:backlog=5",
            "tcp:8891:interface=localhost",
            "tcp6:8891",
            r"tcp6:8891:interface=\:\:1",
            "ssl:8891:privateKey=k.pem",
            "unix:/run/mqhooks.sock",
            "unix:/run/mqhooks.sock:mode=660",
        )
        for description in local:
            self.assertTrue(is_local(description), description)
        reachable = (
            "tcp:8891:interface=0.0.0.0",
            "tcp:8891:interface=",
            "tcp:8891:interface=10.0.0.1",
            "tcp:8891:10.0.0.1",
            "tcp:8891:127.0.0.1",
            r"tcp6:8891:interface=\:\:",
            "ssl:8891:privateKey=k.pem:interface=0.0.0.0",
            "systemd:domain=INET:index=0",
            "haproxy:tcp:8891",
            "tls:8891",
        )
        for description in reachable:
            self.assertFalse(is_local(description), description)

    def test_addresses(self):
        for address in ("127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.1"):
            self.assertTrue(is_loopback(address), address)
        for address in ("", "0.0.0.0", "::", "10.0.0.1", "localhost.example", "::ffff:10.0.0.1", "128.0.0.1"):
            self.assertFalse(is_loopback(address), address)
