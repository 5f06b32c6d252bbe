"""VerneMQ's webhooks within the whole program: settings, options, --check, reload, and the way to an endpoint."""

import builtins
import json
from dataclasses import replace

from twisted.internet import reactor
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.admin.settings import AdminSettings
from mqhooks.app.build import build
from mqhooks.app.configuration import load
from mqhooks.app.describe import describe
from mqhooks.app.settings import OutboxSettings, Settings
from mqhooks.app.tap import makeService
from mqhooks.errors import ConfigError, ConfigErrors
from mqhooks.sources.webhooks.settings import LISTEN, WebhooksSettings
from mqhooks.testing import RecordingSink
from tests.test_config import ConfigCase
from tests.test_reload import BridgeCase
from tests.test_sources_webhooks_protocol import TOKEN
from tests.test_tap import OptionsCase
from tests.vernemq import NEXT, request

OTHER = "another-token-of-32-characters-x"


class ConfigTests(ConfigCase):
    def sources(self, text):
        loaded = self.load(f"mqhooks {{ sources {{ {text} }} }}")
        self.warnings = loaded.warnings
        return loaded.sources

    def mistakes(self, text):
        error = self.assertRaises(ConfigError, self.sources, text)
        lines = [str(each) for each in error.mistakes]
        self.assertTrue(all(line.startswith(f"{self.path}: mqhooks.sources.") for line in lines), lines)
        return [line.removeprefix(f"{self.path}: mqhooks.sources.") for line in lines]

    def test_defaults(self):
        self.assertEqual(Settings().sources.sidecars, ("tcp:8890",))
        self.assertEqual(self.sources("").webhooks, WebhooksSettings())
        found = self.sources("webhooks { }")
        self.assertEqual(found.webhooks, WebhooksSettings(listen=(LISTEN,)))
        self.assertEqual((found.sidecars, self.warnings), ((), ()))

    def test_everything(self):
        found = self.sources(
            f'sidecar {{ listen = "tcp:1" }} webhooks {{ listen = ["tcp:2", "unix:/x"], path = "/a/b", token = "{TOKEN}", '
            'user = u, password = "p:w", max_body = 1MiB, payload_encoding = text }'
        )
        expected = WebhooksSettings(("tcp:2", "unix:/x"), "/a/b", TOKEN, "u", "p:w", 1 << 20, "text")
        self.assertEqual((found.webhooks, found.sidecars, self.warnings), (expected, ("tcp:1",), ()))
        self.assertNotIn(TOKEN, repr(found))
        self.assertNotIn("p:w", repr(found))

    def test_off(self):
        self.assertEqual(self.sources("webhooks { listen = off }").sidecars, ("tcp:8890",))
        self.assertEqual(self.sources("sidecar { listen = off }, webhooks { }").sidecars, ())
        settings = replace(self.load("mqhooks { sources { sidecar { listen = off } } }"), admin=AdminSettings("off"))
        error = self.assertRaises(ConfigError, build, settings, reactor, sinks=[RecordingSink()])
        self.assertIn("there is no source", str(error))

    def test_all_mistakes_at_once(self):
        with self.assertRaises(ConfigErrors):
            self.sources('webhooks { path = x, token = "short", max_body = 1, payload_encoding = hex }')
        self.assertEqual(
            [line.partition(":")[0] for line in self.mistakes('webhooks { path = x, token = "short", max_body = 1 }')],
            ["webhooks.path", "webhooks.token", "webhooks.max_body"],
        )
        for text, mistake in (
            ("webhooks { listen = [] }", "webhooks.listen: is not an address"),
            ('webhooks { listen = "" }', "webhooks.listen: is not an address"),
            ("webhooks { listen { } }", "webhooks.listen: is not an address"),
            ('webhooks { path = "/a?b" }', "webhooks.path: is not a path"),
            ("webhooks { user = u }", "webhooks.password: is missing"),
            ("webhooks { password = p }", "webhooks.user: is missing"),
            ('webhooks { user = "a:b", password = p }', "webhooks.user: is empty or has a colon"),
            ('webhooks { user = a, password = "" }', "webhooks.password: is empty"),
            ('webhooks { token = "${X}" }', "webhooks.token: nothing is substituted within quotes"),
            (
                'webhooks { listen = "tcp:1:interface=0.0.0.0" }',
                "webhooks.listen: other machines can reach tcp:1:interface=0.0.0.0,",
            ),
            (
                "sidecar { max_frame = 1MiB }",
                "sidecar.max_frame: does not belong here: write it in mqhooks { sidecar { max_frame",
            ),
        ):
            (line,) = self.mistakes(text)
            self.assertTrue(line.startswith(mistake), (line, mistake))

    def test_unknown_keys(self):
        self.sources("webhooks { tokn = x }, grpc { lisen = y }")
        self.assertEqual(len(self.warnings), 2)

    def test_what_is_no_source(self):
        """It must not open the port of another one."""
        for name, nearest in (
            ("webhoooks", "webhooks"),
            ("webhook", "webhooks"),
            ("side-car", "sidecar"),
            ("grcp", "grpc"),
            ("listen", None),
            ("http", None),
            ("mqtt", None),
        ):
            for value in ("{ listen = tcp:1 }", "{ }", "= tcp:1", "= [tcp:1]"):
                (line,) = self.mistakes(f"{name} {value}, grpc {{ }}")
                guess = f"; did you mean {nearest!r}?" if nearest else ""
                self.assertEqual(line, f"{name}: there is no such source: the sources are sidecar, webhooks and grpc{guess}")
        self.assertEqual(len(self.mistakes("grcp { }, webhoook { }, webhooks { path = x }")), 3)
        for name in ("source", "sorces", "input"):
            error = self.assertRaises(ConfigError, self.load, f'mqhooks {{ {name} {{ webhooks {{ listen = "tcp:1" }} }} }}')
            self.assertIn(f"mqhooks.{name}: is unknown, but holds sources: write mqhooks {{ sources {{", str(error))

    def test_a_block_in_the_wrong_place(self):
        self.assertIn("belongs in the mqhooks block", self.load("sources { webhooks { } }").warnings[0])
        for text, key, place in (
            ('webhooks { listen = "tcp:1" }', "webhooks", "webhooks"),
            ('grpc { listen = "tcp:1" }', "grpc", "grpc"),
            ('sidecar { listen = "tcp:1" }', "sidecar.listen", "sidecar"),
            ('listen = "tcp:1"', "listen", "sidecar"),
        ):
            (warning,) = self.load(f"mqhooks {{ {text} }}").warnings
            self.assertTrue(warning.startswith(f"{self.path}: mqhooks.{key}: unknown, ignored; "), warning)
            self.assertIn(f"mqhooks {{ sources {{ {place} {{ listen = … }} }} }}", warning)
        (warning,) = self.load("mqhooks { webhook { } }").warnings
        self.assertIn("belongs beside mqhooks { … }", warning)
        error = str(self.assertRaises(ConfigError, self.load, 'webhooks { listen = "tcp:1" }'))
        self.assertIn("webhooks.listen: 'tcp:1' is not a block in braces; ", error)
        self.assertIn("mqhooks { sources { webhooks { listen = … } } }", error)

    def test_keys_of_other_programs(self):
        for text, hint in (
            ("webhooks { port = 1 }", "write listen = tcp:PORT"),
            ("webhooks { enable = false }", "write listen = off"),
            ("sidecar { port = 1 }", "write listen = tcp:PORT"),
            ("grpc { interface = x }", "write listen ="),
            ("grpc { token = x }", "cannot authenticate"),
        ):
            self.sources(text)
            (warning,) = self.warnings
            self.assertIn("unknown, ignored; ", warning)
            self.assertIn(hint, warning)

    def test_what_is_no_listening_endpoint(self):
        """In each source alike, with the key, and what to write."""
        for source, port in (("sidecar", 8890), ("webhooks", 8892), ("grpc", 8893)):
            for address, told in (
                ("9000", '9000 is not a listening endpoint: write "tcp:9000"'),
                ('"0.0.0.0:9000"', 'not a listening endpoint: write "tcp:9000:interface=0.0.0.0"'),
                ('"localhost:9000"', 'not a listening endpoint: write "tcp:9000:interface=localhost"'),
                ("on", f"'on' is not a listening endpoint: write it like tcp:{port}, or off"),
                ('"http://h:9000/s?token=s3cret"', f"is not a listening endpoint: write it like tcp:{port}, or off"),
                ("[]", f"is not an address like tcp:{port}, a list of them, or off"),
                ("[[tcp:1]]", f"is not an address like tcp:{port}, a list of them, or off"),
                ("{ }", f"is not an address like tcp:{port}, a list of them, or off"),
                ('["tcp:1", off]', f"'off' is not a listening endpoint: write it like tcp:{port}, or off"),
            ):
                (line,) = self.mistakes(f"{source} {{ listen = {address} }}")
                self.assertTrue(line.startswith(f"{source}.listen: "), line)
                self.assertIn(told, line)
                self.assertNotIn("s3cret", line)

    def test_grpc_is_off_or_at_its_own_port(self):
        self.assertEqual(self.sources("").grpc.listen, ())
        self.assertEqual(self.sources("grpc { }").grpc.listen, ("tcp:8893:interface=127.0.0.1",))
        self.assertEqual(self.sources("grpc { listen = OFF }").grpc.listen, ())


class OptionTests(OptionsCase, SynchronousTestCase):
    def checked(self, *args):
        printed = []
        self.patch(builtins, "print", printed.append)
        exit_ = self.assertRaises(SystemExit, makeService, self.options(*args, "--check"))
        self.assertEqual(exit_.code, 0)
        return printed[0]

    def listening(self, *args):
        lines = self.checked(*args).splitlines()
        return [line.partition(":interface")[0].split()[1] for line in lines if line.startswith("listen ")]

    def test_where_it_listens(self):
        self.assertEqual(self.listening("--webhooks-port", "1"), ["tcp:1"])
        self.assertEqual(self.listening("--webhooks-port", "1", "--sidecar-port", "2"), ["tcp:2", "tcp:1"])
        self.assertEqual(self.listening("--webhooks-port", "1", "--sidecar", "tcp:2"), ["tcp:2", "tcp:1"])
        path = self.file("mqhooks { sources { webhooks { listen = [tcp:3, tcp:4] } } }")
        self.assertEqual(self.listening("-c", path, "--sink", "log"), ["tcp:3", "tcp:4"])
        self.assertEqual(self.listening("-c", path, "--sink", "log", "--webhooks-port", "5"), ["tcp:5"])
        path = self.file("mqhooks { sources { sidecar { listen = tcp:6 }, webhooks { } } }")
        self.assertEqual(self.listening("-c", path, "--sink", "log"), ["tcp:6", "tcp:8892"])

    def test_two_ways_that_bring_each_event_twice(self):
        for options, ways in (
            (("--webhooks-port", "1"), None),
            (("--sidecar-port", "2"), None),
            (("--grpc-port", "3"), None),
            (("--webhooks-port", "1", "--sidecar-port", "2"), "webhooks and sidecar"),
            (("--webhooks-port", "1", "--grpc-port", "3"), "webhooks and grpc"),
            (("--webhooks-port", "1", "--sidecar-port", "2", "--grpc-port", "3"), "webhooks and sidecar and grpc"),
        ):
            notes = [line for line in self.checked(*options).splitlines() if line.startswith("note ")]
            on = "are on: a broker with both vmq_webhooks and vmq_events_sidecar sends each event twice; turn one off"
            self.assertEqual(notes, [f"note    {ways} {on}"] if ways else [])

    def test_what_vernemq_needs(self):
        rules = "events = [ { event = on_client_disconnected }, { event = on_client_connect } ]"
        path = self.file(f'webhook {{ url = "http://h/", {rules} }}')
        lines = [line.strip() for line in self.checked("-c", path, "--webhooks-port", "8892").splitlines()]
        hooks = [line.split(" = ")[1] for line in lines if line.startswith("vmq_webhooks.") and ".hook" in line]
        self.assertEqual(hooks, ["on_register", "on_register_m5", "on_client_offline", "on_client_gone"])
        self.assertIn("plugins.vmq_webhooks = on", lines)
        self.assertIn("vmq_webhooks.mq4.endpoint = http://127.0.0.1:8892/vernemq", lines)
        self.assertIn("# VerneMQ's own webhooks do not report on_register_failed", lines)

    def refused(self, *args):
        exit_ = self.assertRaises(SystemExit, makeService, self.options(*args, "--sink", "log", "--check"))
        return exit_.code

    def test_each_has_an_address_of_its_own(self):
        everywhere = 'grpc { listen = "tcp:1:interface=0.0.0.0", insecure = on }'
        path = self.file(f'mqhooks {{ sources {{ webhooks {{ listen = "tcp:1" }}, {everywhere} }} }}')
        problem = "already uses this port: give each its own"
        expected = f"{path}:1: mqhooks.sources.grpc.listen: tcp:1:interface=0.0.0.0: mqhooks.sources.webhooks.listen {problem}"
        self.assertEqual(self.refused("-c", path), f"mqhooks: {expected}")
        for options, expected in (
            (("--webhooks-port", "1", "--grpc-port", "1"), "--grpc-port: tcp:1: --webhooks-port"),
            (("--webhooks-port", "1", "--sidecar-port", "1"), "--webhooks-port: tcp:1: --sidecar-port or --sidecar"),
            (("--webhooks-port", "1", "--admin-port", "1"), "--webhooks-port: tcp:1: --admin-port"),
            (("--webhooks-port", "8891"), "--webhooks-port: tcp:8891: mqhooks.admin.listen"),
            (("--sidecar", "tcp:8891"), "--sidecar-port or --sidecar: tcp:8891: mqhooks.admin.listen"),
            (("-c", path, "--grpc-port", "2", "--sidecar-port", "2"), "--grpc-port: tcp:2: --sidecar-port or --sidecar"),
        ):
            line = self.refused(*options)
            self.assertTrue(line.startswith(f"mqhooks: {expected} {problem}"), line)
        self.checked("--webhooks-port", "0", "--grpc-port", "0", "--sidecar", "unix:/a", "--sidecar", "unix:/b")
        apart = 'sidecar { listen = "tcp:1:interface=127.0.0.1" }, webhooks { listen = "tcp:1:interface=127.0.0.2" }'
        self.checked("-c", self.file(f"mqhooks {{ sources {{ {apart} }} }}"), "--sink", "log")
        self.checked("--webhooks-port", "8891", "--admin-port", "0")

    def test_a_wrong_address_says_where_it_stands(self):
        for source in ("sidecar", "webhooks", "grpc"):
            path = self.file(f'mqhooks {{ sources {{ {source} {{ listen = "tcp:70000" }} }} }}')
            expected = f"mqhooks: {path}:1: mqhooks.sources.{source}.listen: tcp:70000: there is no port 70000"
            self.assertTrue(self.refused("-c", path).startswith(expected), self.refused("-c", path))

    def test_no_secret_is_shown(self):
        for secret, shown in (
            (f'token = "{TOKEN}"', "https://mq.example:1/vernemq?token=…"),
            ('user = me, password = "s3cret"', "https://me:…@mq.example:1/vernemq"),
        ):
            listen = 'listen = "ssl:1:interface=mq.example:privateKey=k.pem"'
            path = self.file(f"mqhooks {{ sources {{ webhooks {{ {secret}, {listen} }} }} }}")
            told = describe(load(path), [], ["log"])
            self.assertIn(shown, told)
            self.assertNotIn(TOKEN, told)
            self.assertNotIn("s3cret", told)


class Client(Protocol):
    """Collects answers."""

    def connectionMade(self):
        self.came = b""

    def dataReceived(self, data):
        self.came += data


class BridgeTests(BridgeCase):
    async def begin(self, text):
        endpoint, url = self.endpoint()
        self.url = url
        self.rewrite(text)
        await self.start()
        return endpoint

    def rewrite(self, text):
        ours = f"sources {{ webhooks {{ {text} }} }}"
        self.write(("a", f'url = "{self.url}", details = true'), ours=ours)

    async def client(self):
        (source,) = (source for source in self.bridge.sources if source.via == "webhooks")
        self.source = source
        port = source.addresses[0].port
        client = await connectProtocol(HostnameEndpoint(reactor, "127.0.0.1", port), Client())
        self.addCleanup(client.transport.abortConnection)
        return client

    async def ask(self, client, data):
        client.came = b""
        client.transport.write(data)
        await self.until(lambda: client.came.endswith(b"}"))
        return int(client.came.split()[1])

    async def test_to_the_endpoint(self):
        endpoint = await self.begin("listen = tcp:0")
        client = await self.client()
        properties = {"p_content_type": "x", "p_user_property": [{"key": "YQ==", "val": "Yg=="}]}
        data = request("on_publish_m5", client_id="c", username="u", payload="aGk=", properties=properties)
        self.assertEqual(await self.ask(client, data), 200)
        self.assertEqual(client.came, NEXT)
        await self.until(lambda: endpoint.requests)
        body = json.loads(endpoint.requests[0].body)
        self.assertEqual((body["from_client_id"], body["from_username"], body["payload"]), ("c", "u", "hi"))
        self.assertEqual(body["properties"], {"p_content_type": "x"})
        self.assertEqual(self.bridge.hooks["on_publish"], 1)

    async def test_one_table_of_usernames(self):
        await self.begin("listen = tcp:0")
        sink = RecordingSink()
        await self.service.stopService()
        settings = Settings(
            outbox=OutboxSettings(kind="memory"),
            admin=AdminSettings("off"),
            sources=replace(Settings().sources, webhooks=WebhooksSettings(listen=("tcp:0",))),
        )
        self.service = build(settings, reactor, sinks=[sink])
        self.service.startService()
        self.bridge = self.service.bridge
        client = await self.client()
        await self.ask(client, request("on_register", b'{"client_id":"c","username":"alice"}'))
        await self.ask(client, request("on_client_offline", b'{"client_id":"c"}'))
        self.assertEqual([event.username for event in sink.events], ["alice", "alice"])

    async def test_reload(self):
        await self.begin(f'listen = tcp:0, token = "{TOKEN}"')
        client = await self.client()
        self.assertEqual(await self.ask(client, request(url=f"/vernemq?token={TOKEN}")), 200)
        self.rewrite(f'listen = tcp:0, token = "{OTHER}", path = "/new"')
        (line,) = self.reload()
        self.assertEqual(line, "configuration reloaded: sources.webhooks.path changed, sources.webhooks.token changed")
        self.assertEqual(await self.ask(client, request(url=f"/vernemq?token={TOKEN}")), 404)
        self.assertEqual(await self.ask(client, request(url=f"/new?token={TOKEN}")), 401)
        self.assertEqual(await self.ask(client, request(url=f"/new?token={OTHER}")), 200)

    async def test_what_needs_a_restart(self):
        await self.begin("listen = tcp:0")
        self.rewrite("listen = [tcp:0, tcp:0]")
        self.assertEqual(self.reload()[-1], "these changes need a restart: sources.webhooks.listen")

    async def test_a_token_that_is_needed_stays(self):
        # The old address stays until a restart, so it must not lose its token.
        await self.begin(f'listen = "tcp:0:interface=0.0.0.0", token = "{TOKEN}"')
        self.rewrite("listen = tcp:0")
        (line,) = self.reload()
        self.assertIn("reload failed, keeping the current configuration", line)
        client = await self.client()
        self.assertEqual(await self.ask(client, request()), 401)
