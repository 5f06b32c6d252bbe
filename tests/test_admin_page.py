"""The status page, driven in a browser: a bridge as a process, frames by hand, an endpoint that answers as it is told."""

import os
import socket
from itertools import pairwise
from math import sin
from pathlib import Path

import treq
from twisted.internet import reactor
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent

from mqhooks import __version__
from mqhooks.testing import make_event
from tests.browser import Browser, missing
from tests.endpoints import Endpoint
from tests.frames import envelope, framed
from tests.natscluster import Cluster
from tests.processes import Twistd
from tests.programs import MODULES, missing_node
from tests.vernemq import request
from tests.waiting import until

TOKEN = "correct-horse-battery-staple"
ANYWHERE = "tcp:0:interface=127.0.0.1"
HOSTILE = "<img src=x onerror=\"window.ran=1;alert('ran')\">"
NAMES = ("billing", "audit")
AXE = MODULES / "axe-core" / "axe.min.js"


class Page(TestCase):
    """Shared helpers."""

    timeout = 300
    skip = missing()

    async def start(self, *, admin="", names=NAMES[:1], retry="", kind="sqlite", outbox="", more="", options=()):
        """Start an endpoint for each name, a bridge, a connection to it as VerneMQ makes, and the page in a browser."""
        self.options = options
        self.endpoints = {name: Endpoint() for name in names}
        hooks = "[{ event = on_message_publish }, { event = on_client_connected }]"
        blocks = "\n".join(
            f'{name} {{ url = "{endpoint.listen(self, reactor)}", events = {hooks}, retry {{ {retry} }} {more} }}'
            for name, endpoint in self.endpoints.items()
        )
        self.endpoint = next(iter(self.endpoints.values()), None)
        directory = Path(self.mktemp()).resolve()
        directory.mkdir(parents=True)
        self.config = directory / "mqhooks.conf"
        listen = f'listen = "{ANYWHERE}"'
        outbox = f'outbox {{ kind = {kind}, path = "{directory / "outbox"}"\n{outbox} }}'
        self.config.write_text(
            f"webhooks {{ {blocks} }}\nmqhooks {{ {outbox}, admin {{ {listen}\n{admin} }} }}", encoding="utf-8"
        )
        await self.start_bridge()
        self.browser = Browser(self, reactor)
        await self.browser.start()
        await self.browser.look(width=1180, height=1000)
        await self.browser.open(self.origin)

    async def start_bridge(self):
        self.bridge = Twistd(self, "mqhooks", "--sidecar-port", "0", "--config", str(self.config), *self.options)
        self.origin = f"http://127.0.0.1:{(await self.bridge.until(r'status page is on .*:([0-9]+)'))[1]}"
        match = await self.bridge.until(r"listening for VerneMQ on 127\.0\.0\.1:(\d+)")
        self.broker = await connectProtocol(HostnameEndpoint(reactor, "127.0.0.1", int(match[1])), Protocol())
        self.addCleanup(self.broker.transport.abortConnection)

    def send(self, *events):
        self.broker.transport.write(b"".join(framed(envelope(event.message)) for event in events))

    def publish(self, number=1, **fields):
        """Send messages of as many clients."""
        self.send(*(make_event("on_publish", **{"client_id": f"client-{index}", **fields}) for index in range(number)))

    async def arrived(self, number, endpoint=None):
        await until(lambda: len((endpoint or self.endpoint).requests) >= number)

    async def live(self):
        await self.browser.until("document.getElementById('live').dataset.state === 'live'")

    async def numbers(self, place, **expected):
        """Wait until these numbers stand in a list of numbers."""
        script = """[...document.querySelectorAll(arguments[0] + ' .numbers div, ' + arguments[0] + '.numbers div')].filter(
            (pair) => arguments[1][pair.firstChild.innerText] === pair.lastChild.innerText
        ).length === Object.keys(arguments[1]).length"""
        await self.browser.until(script, place, {name: str(value) for name, value in expected.items()})

    async def headline(self, text):
        await self.browser.until("document.getElementById('headline').innerText.includes(arguments[0])", text)

    async def bury(self, number=1, **fields):
        """Make dead letters, and have the page show them."""
        self.endpoint.answer = lambda request: request.connection.reply(422, b"no <b>such</b> meter")
        self.publish(number, **fields)
        await self.arrived(number)
        await self.letters(number)
        self.endpoint.answer = lambda request: request.connection.reply()

    async def title(self, text):
        await self.browser.until("document.title.includes(arguments[0])", text)

    async def letters(self, number):
        await self.browser.until("document.querySelectorAll('#letters [data-letter]').length === arguments[0]", number)

    async def count_letters(self):
        answer = await treq.get(f"{self.origin}/api/dead-letters", agent=Agent(reactor), reactor=reactor)
        self.assertEqual(answer.code, 200)
        return len((await treq.json_content(answer))["letters"])

    async def assert_clean(self):
        """Nothing went wrong in the page, and nothing was refused to it."""
        self.assertEqual(await self.browser.complaints(), [])


class OwnWebhooks(Page):
    async def start_bridge(self):
        options = ("--webhooks-port", "0", "--config", str(self.config), *self.options)
        self.bridge = Twistd(self, "mqhooks", *options)
        self.origin = f"http://127.0.0.1:{(await self.bridge.until(r'status page is on .*:([0-9]+)'))[1]}"
        self.port = int((await self.bridge.until(r"listening for VerneMQ's webhooks on 127\.0\.0\.1:(\d+)"))[1])

    async def post(self, data):
        broker = await connectProtocol(HostnameEndpoint(reactor, "127.0.0.1", self.port), Protocol())
        self.addCleanup(broker.transport.abortConnection)
        broker.transport.write(data)
        return broker

    async def test_page(self):
        await self.start()
        await self.headline("VerneMQ has posted nothing yet")
        broker = await self.post(request() + request("on_deliver") + request("on_publish", b"{"))
        await self.headline("All is well")
        await self.numbers("#sidecar", connections=1, events=2)
        line = f"webhooks on 127.0.0.1:{self.port}: connections 1, events 2, malformed 1, refused 0"
        await self.browser.until("document.getElementById('sources').innerText === arguments[0]", line)
        # VerneMQ closes what it does not use.
        broker.transport.loseConnection()
        await self.numbers("#sidecar", connections=0, events=2)
        await self.headline("All is well")
        await self.assert_clean()

    async def test_what_each_source_brought(self):
        await self.start(options=("--sidecar-port", "0"))
        sidecar = await self.bridge.until(r"listening for VerneMQ on 127\.0\.0\.1:(\d+)")
        broker = await connectProtocol(HostnameEndpoint(reactor, "127.0.0.1", int(sidecar[1])), Protocol())
        self.addCleanup(broker.transport.abortConnection)
        broker.transport.write(b"".join(framed(envelope(make_event("on_publish").message)) for _ in range(3)))
        await self.post(request() + request())
        row = "document.querySelector('[data-hook=on_publish]')?.innerText.includes(arguments[0])"
        await self.browser.until(row, "5 (sidecar 3, webhooks 2)")
        self.assertEqual(len((await self.browser.text("#sources")).splitlines()), 2)
        await self.assert_clean()

    async def test_events_that_are_refused(self):
        await self.start(retry="initial = 1h, max = 1h", outbox="max_size = 1MiB")
        self.endpoint.answer = lambda request: request.connection.reply(503)
        await self.post(b"".join(request(payload="A" * 60_000) for _ in range(30)))
        await self.headline("VerneMQ's events are refused")
        await self.assert_clean()


class Showing(Page):
    async def test_numbers_follow_what_happens(self):
        await self.start()
        await self.live()
        await self.headline("All is well")
        await self.browser.run("window.loaded = 1")
        self.publish(5)
        await self.numbers(".webhook", delivered=5, waiting=0)
        await self.numbers("#sidecar", connections=1, events=5)
        self.publish(7)
        self.send(make_event("on_register"))
        await self.numbers(".webhook", delivered=13, dead=0)
        await self.browser.until("document.querySelector('[data-hook=on_publish]').innerText.includes('12')")
        await self.browser.until("document.querySelectorAll('#events li').length >= 10")
        # All of this without a second loading.
        self.assertEqual(await self.browser.run("return window.loaded"), 1)
        await self.assert_clean()

    async def test_chart_follows_what_happens(self):
        await self.start()
        self.publish(5)
        await self.browser.until(
            "/at most (0.[1-9]|1.0).s delivered/.test(document.querySelector('.chart .readout')?.innerText)"
        )
        drawn = "return document.querySelector('.chart path.delivered').getBBox().height"
        self.assertGreater(await self.browser.run(drawn), 5)

    async def test_failing_endpoint(self):
        await self.start(names=NAMES, retry="initial = 1h, max = 1h")
        self.endpoint.answer = lambda request: request.connection.reply(503, b"come back on Monday")
        self.publish(30)
        await self.headline("billing is failing")
        problem = await self.browser.text("#problems")
        self.assertIn("answered 503", problem)
        self.assertIn("30 deliveries wait", problem)
        card = '[aria-labelledby="webhook-0"]'
        await self.numbers(card, waiting=30, delivered=0)
        self.assertRegex(await self.browser.text(f"{card} .said"), r"Failing since .* Next try in .* answered 503")
        await self.browser.click(f"{card} .answer summary")
        self.assertIn("503\ncome back on Monday", await self.browser.text(f"{card} .answer pre"))
        await self.numbers('[aria-labelledby="webhook-1"]', waiting=0, delivered=30)
        await self.assert_clean()

    async def test_what_the_failing_endpoint_says_is_seen_at_once(self):
        await self.start(retry="initial = 1h, max = 1h")
        self.endpoint.answer = lambda request: request.connection.reply(503, b"first line\n\tsecond <b>line</b>\r\nthird")
        self.publish(30)
        await self.headline("billing is failing")
        in_a_line = "It said: “first line second <b>line</b> third”"
        await self.browser.until("document.querySelector('.webhook .said')?.innerText.includes(arguments[0])", in_a_line)
        self.assertIn(in_a_line, await self.browser.text("#problems"))
        await self.browser.click(".webhook .answer summary")
        self.assertIn("503\nfirst line\n\tsecond <b>line</b>\nthird", await self.browser.text(".webhook .answer pre"))
        await self.assert_clean()

    async def test_what_was_replayed_is_dead_no_longer(self):
        await self.start()
        await self.bury(2)
        await self.numbers(".webhook", dead=2)
        await self.browser.click("#letters-replay")
        await self.numbers(".webhook", dead=0, delivered=2)
        await self.headline("All is well")
        await self.browser.until("document.querySelector('.webhook .rest')?.innerText.includes('2 given up since the start')")
        self.assertIn("Last error", await self.browser.text(".webhook .said"))
        await self.assert_clean()

    async def test_which_bridge_and_whose_time(self):
        await self.start()
        await self.title(f"mqhooks on {socket.gethostname()} · {__version__} · ")
        head = await self.browser.text(".top")
        self.assertIn(f" on {socket.gethostname()}", head)
        zone = await self.browser.run("return Intl.DateTimeFormat().resolvedOptions().timeZone")
        self.assertIn(f"times in {zone} (", head)
        self.broker.transport.loseConnection()
        await self.title("(!) VerneMQ is not connected")
        await self.title(f"mqhooks on {socket.gethostname()}")
        await self.assert_clean()

    async def test_no_webhook_but_other_sinks(self):
        log = Path(self.mktemp()).resolve()
        await self.start(
            names=(), options=(f"--sink=log:path={log}", "--sink=filter:hooks=on_publish:sink=log\\:path=/dev/null")
        )
        await self.browser.until("document.getElementById('webhooks').innerText.includes('No webhook is configured')")
        self.publish(3)
        await self.browser.until("document.getElementById('sinks').innerText.includes('written: 3')")
        rows = [row.split("\t") for row in (await self.browser.text("#sinks")).splitlines()]
        self.assertEqual(rows[0][:2], [f"log:path={log}", "runs"])
        self.assertEqual(rows[1][0], "filter:hooks=on_publish:sink=log:path=/dev/null")
        self.assertEqual(len(rows), 3)
        await self.headline("All is well")
        await self.assert_clean()

    async def test_bridges_that_share_an_outbox(self):
        nodes = await Cluster(self, 1).start()
        servers = f'servers = ["nats://{nodes.servers[0]}"]'
        await self.start(kind="jetstream", outbox=f"{servers}, replicas = 1, partitions = 3, max_size = 64MiB")
        await self.browser.until("document.getElementById('members').innerText.includes('3 partitions')")
        other = Twistd(self, "mqhooks", "--sidecar-port", "0", "--admin-port", "0", "--config", str(self.config))
        await self.browser.until("/\\b1 partition\\b/.test(document.getElementById('members').innerText)")
        rows = (await self.browser.text("#members")).splitlines()
        self.assertEqual(len(rows), 2)
        self.assertEqual(len([row for row in rows if "(this one)" in row]), 1)
        self.assertEqual(sum(row.count("billing") for row in rows), 3)
        told = f"billing: 0 waiting. This one is connected to {nodes.servers[0]}"
        self.assertIn(told, await self.browser.text("#cluster"))
        await other.kill()
        await self.browser.until("document.getElementById('members').rows.length === 1")
        await self.headline("All is well")
        await self.assert_clean()

    async def test_endpoint_that_nothing_was_sent_to(self):
        await self.start()
        await self.browser.until("document.querySelector('.webhook .state')?.innerText.includes('not tried yet')")
        self.publish(1)
        await self.browser.until("document.querySelector('.webhook .state').innerText.endsWith('up')")
        self.assertEqual(await self.browser.run("return document.getElementById('sinks-section').hidden"), True)

    async def test_page_that_is_refused_says_so(self):
        await self.start()
        await self.live()
        await self.browser.open("about:blank")
        watchers = [socket.create_connection(("127.0.0.1", int(self.origin.rpartition(":")[2]))) for _ in range(40)]
        for watcher in watchers:
            self.addCleanup(watcher.close)
            watcher.sendall(b"GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await self.browser.open(self.origin)
        await self.headline("mqhooks refuses this page")
        self.assertIn("pages are already watching: close one", await self.browser.text("#summary"))
        await self.title("(?) mqhooks refuses this page")
        for watcher in watchers:
            watcher.close()
        await self.live()
        await self.headline("All is well")

    async def test_chart_has_a_scale_that_a_burst_does_not_flatten(self):
        await self.start()
        await self.live()
        drawn = await self.browser.run(CHART, [20] * 90 + [20000] * 2 + [30] * 88)
        self.assertEqual(drawn["scale"], ["20.0/s", "10.0/s", "10 waiting"])
        self.assertGreater(drawn["usual"], 8)
        self.assertIn("4,000/s", drawn["readout"])
        self.assertTrue(drawn["cut"])
        # Without a burst nothing is cut off.
        drawn = await self.browser.run(CHART, [20] * 90 + [40] * 90)
        self.assertEqual((drawn["scale"][0], drawn["cut"]), ("10.0/s", ""))
        drawn = await self.browser.run(CHART, [0] * 179 + [5000])
        self.assertEqual((drawn["scale"][0], drawn["cut"]), ("1,000/s", ""))

    async def test_chart_is_read_by_keyboard(self):
        await self.start()
        self.publish(5)
        await self.numbers(".webhook", delivered=5)
        await self.browser.run("document.querySelector('.chart svg').focus()")
        now = await self.browser.text(".chart .readout")
        self.assertRegex(now, r"^\d\d:\d\d:\d\d: .* accepted, .* waiting$")
        await self.browser.type(".chart svg", "\ue012\ue012")
        earlier = await self.browser.text(".chart .readout")
        self.assertLess(earlier[:8], now[:8])
        value = "return document.querySelector('.chart svg').getAttribute(arguments[0])"
        self.assertEqual(await self.browser.run(value, "aria-valuenow"), "177")
        times = (await self.browser.text(".chart .times")).split()
        self.assertRegex(" ".join(times), r"^\d\d:\d\d \d\d:\d\d \d\d:\d\d \d\d:\d\d$")
        minutes = [int(time[:2]) * 60 + int(time[3:]) for time in times]
        self.assertEqual({(later - time) % 1440 for time, later in pairwise(minutes)}, {5})
        self.assertEqual((await self.browser.run(value, "aria-valuetext"))[8:], earlier[8:])
        await self.browser.type(".chart svg", "\ue011")
        self.assertEqual(await self.browser.run(value, "aria-valuenow"), "0")
        await self.browser.run("document.activeElement.blur()")
        await self.browser.until("document.querySelector('.chart .readout').innerText.startsWith('15 min')")
        await self.assert_clean()

    async def test_drawings_and_borders_are_seen(self):
        await self.start()
        await self.live()
        for dark in (False, True):
            await self.browser.look(width=1180, height=1000, dark=dark)
            contrasts = await self.browser.run(CONTRASTS)
            self.assertGreater(len(contrasts), 7)
            self.assertEqual({name: ratio for name, ratio in contrasts.items() if ratio < 3}, {}, f"dark: {dark}")

    async def test_outbox_in_memory(self):
        await self.start(kind="memory", retry="initial = 1h, max = 1h")
        self.endpoint.answer = lambda request: request.connection.reply(410)
        self.publish(2)
        await self.headline("2 dead letters")
        await self.browser.until("document.getElementById('letters-count').innerText.includes('does not show them')")
        self.endpoint.answer = lambda request: request.connection.reply(503)
        self.publish(30)
        await self.browser.until("document.getElementById('problems').innerText.includes('30 deliveries wait in memory')")
        await self.assert_clean()

    async def test_broker_that_is_not_connected(self):
        await self.start()
        await self.headline("All is well")
        self.broker.transport.loseConnection()
        await self.headline("VerneMQ is not connected")
        await self.assert_clean()

    async def test_bridge_that_ends_and_comes_back(self):
        await self.start()
        await self.live()
        await self.bridge.kill()
        config = self.config.read_text().replace(ANYWHERE, ANYWHERE.replace(":0:", f":{self.origin.rpartition(':')[2]}:"))
        self.config.write_text(config)
        await self.headline("mqhooks does not answer")
        await self.title("(?) mqhooks does not answer")
        await self.start_bridge()
        await self.headline("All is well")
        await self.browser.until("!document.title.includes('does not answer')")
        await self.live()

    async def test_payloads_are_shown_on_request_only(self):
        await self.start()
        await self.live()
        self.publish(payload=b"21.4 degrees")
        await self.browser.until("document.querySelectorAll('#events li').length === 1")
        self.assertNotIn("21.4 degrees", await self.browser.text("#events"))
        await self.browser.click("#events-payload")
        # What is sent before the page has asked again is not shown.
        sent = 1
        while "21.4 degrees" not in await self.browser.text("#events"):
            self.publish(payload=b"21.4 degrees")
            sent += 1
            await self.arrived(sent)
            await self.numbers(".webhook", delivered=sent)
        await self.browser.click("#events-hold")
        held = await self.browser.text("#events")
        self.publish(payload=b"22.5 degrees")
        await self.numbers(".webhook", delivered=sent + 1)
        self.assertEqual(await self.browser.text("#events"), held)
        await self.assert_clean()

    async def test_configuration_without_its_secrets(self):
        await self.start(admin=f'token = "{TOKEN}"')
        await self.browser.type("#token", TOKEN)
        await self.browser.click("#login-form button")
        await self.live()
        await self.browser.click("#config summary")
        await self.browser.until("document.getElementById('settings').rows.length > 10")
        text = await self.browser.text("#settings")
        self.assertIn(self.endpoint_url(), text)
        self.assertNotIn(TOKEN, await self.browser.run("return document.documentElement.outerHTML"))

    def endpoint_url(self):
        return f"http://127.0.0.1:{self.endpoint.port.getHost().port}/hook"

    async def test_phone(self):
        await self.start(names=NAMES)
        await self.browser.look(width=360, height=740)
        await self.bury(3, topic=f"{HOSTILE}/" + "a" * 500)
        await self.browser.click("#letters .open")
        await self.browser.until("document.querySelector('#letters pre')")
        await self.browser.run("document.getElementById('config').open = true")
        await self.browser.until("document.getElementById('settings').rows.length > 10")
        self.assertEqual(await self.browser.run("return innerWidth"), 360)
        self.assertLessEqual(await self.browser.run("return document.documentElement.scrollWidth"), 360)
        await self.assert_clean()


class Looks(Page):
    """What holds at both widths and in both schemes, while much is to be seen."""

    async def show_much(self):
        await self.start(names=NAMES, retry="initial = 1h, max = 1h")
        await self.bury(2, topic=f"{HOSTILE}/" + "a" * 500)
        self.endpoint.answer = lambda request: request.connection.reply(503, b"come back on Monday")
        self.publish(30)
        await self.headline("billing is failing")
        await self.browser.click("#letters .open")
        await self.browser.until("document.querySelector('#letters pre')")
        await self.browser.run("document.querySelectorAll('details').forEach((details) => (details.open = true))")
        await self.browser.until("document.getElementById('settings').rows.length > 10")

    async def each_look(self):
        for width, height in ((1180, 1000), (360, 740)):
            for dark in (False, True):
                await self.browser.look(width=width, height=height, dark=dark)
                yield f"{width} pixels wide, {'dark' if dark else 'light'}"

    async def test_targets_are_large_and_nothing_sticks_out(self):
        await self.show_much()
        async for look in self.each_look():
            self.assertEqual(await self.browser.run(SMALL), [], look)
            wide, shown = await self.browser.run("return [document.documentElement.scrollWidth, innerWidth]")
            self.assertLessEqual(wide, shown, look)

    async def test_axe_finds_nothing(self):
        await self.show_much()
        await self.browser.run(AXE.read_text(encoding="utf-8"))
        async for look in self.each_look():
            self.assertEqual(await self.browser.run(BARRIERS), [], look)
        await self.assert_clean()

    async def test_reading_without_javascript(self):
        await self.show_much()
        await self.browser.disable_scripts()
        await self.browser.open(self.origin)
        async for look in self.each_look():
            text = await self.browser.run("return document.body.innerText")
            self.assertTrue(text.startswith("billing is failing, 2 dead letters"), text)
            self.assertIn("come back on Monday", text)
            self.assertNotIn("Asking mqhooks", text)
            wide, shown = await self.browser.run("return [document.documentElement.scrollWidth, innerWidth]")
            self.assertLessEqual(wide, shown, look)
        await self.assert_clean()

    if missing_node():
        test_axe_finds_nothing.skip = missing_node()


class Pressing(Page):
    async def test_dead_letter_is_replayed(self):
        await self.start()
        await self.bury()
        await self.headline("1 dead letter")
        await self.browser.click("#letters .open")
        await self.browser.until("document.querySelector('#letters pre.request')")
        buried = self.endpoint.requests[0]
        shown = await self.browser.text("#letters pre.request")
        self.assertIn(buried.body.decode(), shown)
        self.assertIn(f"webhook-id: {buried.header('webhook-id')}", shown.lower())
        self.assertIn("422\n\nno <b>such</b> meter", await self.browser.text("#letters pre.answer"))
        await self.browser.click("#letters [data-letter] button[aria-label^=Replay]")
        await self.arrived(2)
        self.assertEqual(self.endpoint.requests[1].body, buried.body)
        await self.letters(0)
        await self.headline("All is well")
        await self.assert_clean()

    async def test_dead_letter_says_how_it_was_sent(self):
        await self.start(more="method = PUT")
        await self.bury()
        await self.browser.click("#letters .open")
        await self.browser.until("document.querySelector('#letters pre.request')?.innerText.startsWith('PUT http://')")
        self.assertEqual(self.endpoint.requests[0].method, "PUT")
        await self.assert_clean()

    async def test_purging_asks_first(self):
        await self.start()
        await self.bury(2)
        await self.browser.click("#letters [data-letter] button[aria-label^=Purge]")
        await self.browser.click("#confirm button[value=no]")
        self.assertEqual(await self.count_letters(), 2)
        await self.browser.click("#letters [data-letter] button[aria-label^=Purge]")
        await self.browser.click("#confirm-yes")
        await self.letters(1)
        self.assertEqual(await self.count_letters(), 1)
        self.assertEqual(len(self.endpoint.requests), 2)
        await self.assert_clean()

    async def test_filters_by_client_status_and_time(self):
        await self.start()
        await self.bury(3)
        for name, text, number in (("client", "client-1", 1), ("status", "5xx", 0), ("since", "1h", 3), ("until", "1h", 0)):
            await self.browser.type(f"#letters-{name}", text)
            await self.browser.run("document.getElementById('letters-filter').requestSubmit()")
            await self.letters(number)
            await self.browser.run(f"document.getElementById('letters-{name}').value = ''")
        await self.browser.type("#letters-status", "x")
        await self.browser.run("document.getElementById('letters-filter').requestSubmit()")
        await self.browser.until("document.getElementById('toast').innerText.includes('is not a status like 503')")

    async def test_filter_holds_for_the_buttons(self):
        await self.start(names=NAMES)
        self.endpoints["audit"].answer = lambda request: request.connection.reply(404)
        await self.bury_both()
        await self.browser.type("#letters-reason", "answered 404")
        await self.letters(3)
        await self.browser.until("document.getElementById('letters-replay').innerText === 'Replay these 3'")
        self.endpoints["audit"].answer = lambda request: request.connection.reply()
        await self.browser.click("#letters-replay")
        await self.arrived(6, self.endpoints["audit"])
        await self.letters(0)
        await self.browser.run("document.getElementById('letters-reason').value = ''")
        await self.browser.run("document.getElementById('letters-filter').requestSubmit()")
        await self.letters(3)
        await self.browser.until("document.getElementById('letters-purge').innerText.startsWith('Purge all 3')")
        await self.browser.click("#letters-purge")
        await self.browser.click("#confirm-yes")
        await self.letters(0)
        self.assertEqual(await self.count_letters(), 0)
        self.assertEqual(len(self.endpoint.requests), 3)
        await self.assert_clean()

    async def bury_both(self):
        self.endpoint.answer = lambda request: request.connection.reply(422)
        self.publish(3)
        await self.letters(6)

    async def test_webhook_is_paused_and_resumed(self):
        await self.start()
        await self.browser.click(".webhook header button")
        await self.headline("billing is paused")
        self.publish(3)
        await self.numbers(".webhook", waiting=3, delivered=0)
        self.assertEqual(self.endpoint.requests, [])
        await self.browser.click(".webhook header button")
        await self.arrived(3)
        await self.numbers(".webhook", waiting=0, delivered=3)
        await self.headline("All is well")
        await self.assert_clean()

    async def test_the_next_attempt_is_made_now(self):
        await self.start(retry="initial = 1h, max = 1h")
        await self.live()
        self.assertEqual(await self.browser.run(TRIES), [True])
        self.endpoint.answer = lambda request: request.connection.reply(503)
        self.publish(30)
        await self.headline("billing is failing")
        await self.browser.until("document.querySelector('.webhook .said')?.innerText.includes('Next try in')")
        self.endpoint.answer = lambda request: request.connection.reply()
        await self.browser.click("[data-verb=try]")
        await self.numbers(".webhook", waiting=0, delivered=30)
        await self.headline("All is well")
        await self.browser.until(f"(() => {{ {TRIES} }})()[0]")
        await self.assert_clean()

    async def test_a_retry_of_one_client_is_made_now(self):
        await self.start(retry="initial = 1h, max = 1h")
        self.endpoint.answer = lambda request: request.connection.reply(503)
        self.publish(1)
        await self.browser.until("document.querySelector('.webhook .said')?.innerText.includes('1 retry waits for its time')")
        self.endpoint.answer = lambda request: request.connection.reply()
        await self.browser.click("[data-verb=try]")
        await self.numbers(".webhook", waiting=0, delivered=1)
        await self.assert_clean()

    async def test_dead_letters_that_are_alike_are_one_line(self):
        await self.start(names=NAMES)
        self.endpoint.answer = lambda request: request.connection.reply(422)
        self.publish(96)
        group = "#letters [data-group]"
        await self.browser.until("document.querySelector(arguments[0])?.innerText.includes('96 clients')", group)
        self.assertRegex(await self.browser.text(f"{group} .open"), r"^96 ")
        await self.letters(0)
        self.endpoints["audit"].answer = lambda request: request.connection.reply(404)
        self.endpoint.answer = lambda request: request.connection.reply()
        self.publish(2, topic="other")
        await self.letters(2)
        await self.browser.click(f"{group} .open")
        await self.letters(98)
        await self.browser.click("#letters [data-letter='3'] .open")
        await self.browser.until("document.querySelector('#letters pre.request')")
        await self.browser.click("#letters [data-letter='3'] button[aria-label^=Replay]")
        await self.letters(97)
        await self.browser.click(f"{group} button[aria-label='Replay these 95 dead letters']")
        await self.arrived(96 + 2 + 96)
        await self.letters(2)
        self.assertEqual(await self.count_letters(), 2)
        await self.assert_clean()

    async def test_a_line_of_those_that_are_alike_is_purged(self):
        await self.start()
        self.endpoint.answer = lambda request: request.connection.reply(422)
        self.publish(7)
        await self.browser.click("#letters [data-group] button[aria-label^=Purge]")
        self.assertIn("Purge 7 dead letters?", await self.browser.text("#confirm-text"))
        await self.browser.click("#confirm-yes")
        await self.browser.until("!document.querySelector('#letters [data-group]')")
        self.assertEqual(await self.count_letters(), 0)
        await self.assert_clean()

    async def test_more_than_fit_are_shown_bit_by_bit(self):
        await self.start()
        statuses = iter(status for status in range(411, 440) if status not in (425, 429))
        self.endpoint.answer = lambda request: request.connection.reply(next(statuses))
        for number in range(25):
            self.publish(1, client_id=f"meter-{number}")
            await self.arrived(number + 1)
        await self.letters(10)
        await self.browser.click("#letters-more")
        await self.letters(25)
        self.assertEqual(await self.browser.run("return document.getElementById('letters-more').hidden"), True)

    async def test_it_is_paused_until_a_time(self):
        await self.start()
        await self.browser.click("[data-verb=until]")
        self.assertIn("Pause billing until", await self.browser.text("#confirm-text"))
        await self.browser.click("#confirm button[value=no]")
        await self.browser.run("return new Promise((done) => setTimeout(done))")
        self.assertNotIn("paused", await self.browser.text(".webhook .state"))
        await self.browser.click("[data-verb=until]")
        await self.browser.click("#confirm-yes")
        await self.headline("billing is paused")
        await self.browser.until(
            "/Nothing is sent for another (5\\d|60) min/.test(document.getElementById('problems').innerText)"
        )
        self.assertRegex(await self.browser.text(".webhook .said"), r"^Paused by hand until (.* )?\d\d:\d\d:00\.")
        await self.browser.click("[data-verb=until]")
        await self.browser.run("document.getElementById('confirm-time').value = '2020-01-01T00:00'")
        await self.browser.click("#confirm-yes")
        await self.toast("is over")
        await self.browser.click(".webhook header button")
        await self.headline("All is well")
        await self.browser.complaints()

    async def test_a_test_and_the_last_attempts(self):
        await self.start()
        self.endpoint.answer = lambda request: request.connection.reply(422, b"no <b>such</b>\r\nmeter")
        await self.browser.click(".attempts summary")
        await self.attempts("None since the start.")
        self.publish(1, client_id=HOSTILE)
        await self.attempts(f"ms  {HOSTILE}  no <b>such</b> meter")
        self.endpoint.answer = lambda request: request.connection.reply(202, b"thanks")
        await self.browser.click("[data-verb=test]")
        await self.toast("Test of billing: ")
        self.assertRegex(await self.browser.text("#toast"), r": \d\d:\d\d:\d\d 202 [\d,]+ ms mqhooks-test thanks$")
        await self.attempts("mqhooks-test  thanks\n")
        self.assertEqual((await self.browser.text(".attempts pre")).count("\n"), 1)
        await self.assert_clean()

    async def attempts(self, text):
        await self.browser.until("document.querySelector('.attempts pre').innerText.includes(arguments[0])", text)

    async def toast(self, text):
        await self.browser.until("document.getElementById('toast').innerText.includes(arguments[0])", text)


class Linking(Page):
    async def go(self, place):
        await self.browser.open("about:blank")
        await self.browser.open(f"{self.origin}/#{place}")
        await self.live()

    async def test_to_a_webhook(self):
        await self.start(names=NAMES)
        await self.browser.look(width=360, height=740)
        await self.live()
        await self.browser.click("#webhook-1 a")
        self.assertTrue((await self.browser.run("return location.href")).endswith("/#webhook:audit"))
        for place in ("webhook:audit", "webhook%3Aaudit"):
            await self.go(place)
            await self.browser.until("document.activeElement.id === 'webhook:audit'")
            top = await self.browser.run("return document.activeElement.getBoundingClientRect().top")
            self.assertLess(abs(top), 100)
        await self.go("%zz")
        await self.assert_clean()

    async def test_to_a_dead_letter(self):
        await self.start()
        self.endpoint.answer = lambda request: request.connection.reply(422)
        self.publish(9)
        await self.headline("9 dead letters")
        self.endpoint.answer = lambda request: request.connection.reply()
        await self.go("letter-7")
        await self.browser.until("document.querySelector('[data-letter]')?.dataset.letter === '7'")
        await self.browser.until("document.querySelector('#letters pre.request')?.checkVisibility()")
        # Those that are alike are one line; this one stands above them.
        await self.browser.until("document.querySelector('#letters [data-group] .open')?.innerText.startsWith('8')")
        await self.letters(1)
        await self.browser.click("#letters [data-letter] button[aria-label^=Replay]")
        await self.letters(0)
        await self.browser.until("document.querySelector('#letters [data-group] .open')?.innerText.startsWith('8')")
        await self.assert_clean()
        await self.browser.run("location.hash = 'letter-7'; dispatchEvent(new HashChangeEvent('hashchange'))")
        await self.browser.until("document.getElementById('toast').innerText.includes('there is no dead letter 7')")

    async def test_to_a_time(self):
        await self.start(names=NAMES)
        await self.bury(2)
        at = "2026-01-01T00:00:00Z"
        await self.go(f"time-{at}")
        await self.letters(0)
        since = "return [document.getElementById('letters-since').value, document.getElementById('letters-until').value]"
        self.assertEqual(await self.browser.run(since), ["2025-12-31T23:55:00Z", "2026-01-01T00:05:00Z"])
        await self.browser.until("document.querySelector('.readout').innerText.startsWith('15 min')")
        now = await self.browser.run("return new Date(Date.now() - 60000).toISOString()")
        await self.go(f"time-{now}")
        await self.letters(2)
        both = (
            "[...document.querySelectorAll('.readout')].filter((text) => /^\\d\\d:\\d\\d:\\d\\d: /.test(text.innerText)).length"
        )
        await self.browser.until(f"{both} === 2")
        await self.browser.run("document.querySelector('.chart svg').focus()")
        await self.browser.type(".chart svg", "\ue011\ue007")
        await self.browser.until("/#time-.*Z$/.test(location.href) && !location.href.endsWith(arguments[0])", now)
        await self.assert_clean()


class Strangers(Page):
    async def test_hostile_names_are_text(self):
        await self.start()
        await self.live()
        # The last one turns the direction of writing.
        await self.bury(client_id=HOSTILE, topic=f"{HOSTILE}/\u202etxt", payload=HOSTILE.encode(), username=HOSTILE)
        await self.browser.until("document.querySelectorAll('#events li').length === 1")
        await self.browser.click("#letters .open")
        await self.browser.until("document.querySelector('#letters pre.request')")
        events, letters = await self.browser.text("#events"), await self.browser.text("#letters")
        self.assertIn(f"{HOSTILE}/\\u202etxt", events)
        self.assertEqual(events.count(HOSTILE), 2)
        self.assertGreaterEqual(letters.count("<img src=x"), 2)
        self.assertEqual(await self.browser.run("return document.querySelectorAll('img, #letters b').length"), 0)
        self.assertIsNone(await self.browser.run("return window.ran"))
        self.assertIsNone(await self.browser.dialog())
        await self.assert_clean()

    async def test_script_that_got_in_does_not_run(self):
        await self.start()
        await self.live()
        await self.browser.run(
            "const made = document.createElement('div'); made.innerHTML = arguments[0]; document.body.append(made);"
            "const script = document.createElement('script'); script.text = 'window.ran = 1'; document.body.append(script);",
            HOSTILE,
        )
        complaints = []

        async def both_refused():
            complaints.extend(await self.browser.complaints())
            return len([text for text in complaints if "Content Security Policy" in text]) >= 2

        await until(both_refused)
        self.assertIsNone(await self.browser.run("return window.ran"))
        self.assertIsNone(await self.browser.dialog())

    async def test_foreign_origin_cannot_post(self):
        await self.start()
        await self.bury()
        letter = await self.browser.run("return document.querySelector('[data-letter]').dataset.letter")
        await self.browser.open(await self.foreign())
        for path in (f"{letter}/replay", f"{letter}/purge", "replay", "purge"):
            outcomes = await self.browser.run(POSTS, f"{self.origin}/api/dead-letters/{path}")
            self.assertEqual(outcomes, ["TypeError", "TypeError", "TypeError", "loaded"])
        self.assertEqual(await self.browser.run(READS, f"{self.origin}/api/status"), "TypeError")
        await self.browser.complaints()
        await self.browser.run(FRAMES, self.origin)
        self.assertIn("frame-ancestors", "".join(await self.browser.complaints()))
        self.assertEqual(await self.count_letters(), 1)
        self.assertEqual(len(self.endpoint.requests), 1)

    async def foreign(self):
        """Serve another page on another port; its address."""
        page, html = b"<!doctype html><title>elsewhere</title>", [("Content-Type", "text/html")]
        return Endpoint(lambda request: request.connection.reply(200, page, html)).listen(self, reactor)

    async def test_token(self):
        await self.start(admin=f'token = "{TOKEN}"')
        await self.browser.type("#token", "a-guess-that-is-wrong")
        await self.browser.click("#login-form button")
        await self.browser.until("document.getElementById('login-error').innerText.includes('not the token')")
        self.assertEqual(await self.browser.run("return document.querySelectorAll('.webhook').length"), 0)
        await self.browser.type("#token", TOKEN)
        await self.browser.click("#login-form button")
        await self.live()
        await self.browser.open(self.origin)
        await self.live()
        await self.browser.click(".webhook header button")
        await self.headline("billing is paused")


class Screenshot(Page):
    """What the documentation shows; it takes some minutes, so that the drawings show some."""

    timeout = 900
    seconds = 360
    if "MQHOOKS_SCREENSHOT" not in os.environ:
        skip = "make screenshot takes it"

    async def test_screenshot(self):
        await self.start(names=NAMES, retry="initial = 20s, max = 20s")
        await self.bury(2, client_id="meter-7", topic="sensors/hall-3/temperature", payload=b'{"t":21.4}')
        for second in range(self.seconds):
            if second == self.seconds - 90:
                self.endpoint.answer = lambda request: request.connection.reply(503, b"come back on Monday")
            self.publish(
                24 + round(9 * sin(second / 15)), topic=f"sensors/hall-{second % 5}/temperature", payload=b'{"t":21.4}'
            )
            client = {"client_id": f"meter-{second}"}
            self.send(
                *(make_event(hook, **client) for hook in ("on_register", "on_subscribe", "on_client_offline")[second % 3 :])
            )
            await deferLater(reactor, 1)
        await self.headline("billing is failing")
        bottom = "return document.getElementById('letters-section').getBoundingClientRect().bottom + scrollY + 20"
        await self.browser.look(width=1180, height=round(await self.browser.run(bottom)))
        await deferLater(reactor, 2)
        Path(os.environ["MQHOOKS_SCREENSHOT"]).write_bytes(await self.browser.screenshot())


SMALL = """
const seen = [...document.querySelectorAll('a:not(.skip), button, input, select, summary, [role=slider]')].filter(
  (element) => element.checkVisibility() && !element.closest('dialog')
);
const boxes = seen.map((element) => [element.outerHTML.slice(0, 200), element.getBoundingClientRect()]);
const small = boxes.filter(([, { width, height }]) => Math.min(width, height) < 43.9);
return small.map(([name, { width, height }]) => `${name}: ${width} by ${height}`);
"""
BARRIERS = """
return axe.run(document, { rules: { 'target-size': { enabled: true } } }).then(({ violations }) =>
  violations.map(({ id, help, nodes }) => [id, help, ...nodes.slice(0, 3).map((node) => node.html + node.failureSummary)])
);
"""
TRIES = "return [...document.querySelectorAll('[data-verb=try]')].map((button) => button.hidden)"
CHART = """
const accepted = arguments[0];
return (async () => {
  const { Webhooks } = await import('/webhooks.js');
  const status = await (await fetch('/api/status')).json();
  const none = accepted.map(() => 0);
  const history = { step: 5, end: status.now, accepted, delivered: accepted, failed: none, waiting: none };
  Object.assign(status.webhooks[0], { name: `drawn-${Math.random()}`, history });
  new Webhooks(() => {}).show(status);
  const chart = document.querySelector('.chart');
  const box = (name) => chart.querySelector(`path.${name}`);
  const steps = box('accepted').getAttribute('d').match(/L(\\d+) ([\\d.]+)/g).map((step) => 48 - step.split(' ')[1]);
  return {
    scale: [...chart.querySelectorAll('.plot span')].map((span) => span.innerText),
    usual: steps[10],
    cut: box('cut').getAttribute('d'),
    readout: chart.querySelector('.readout').innerText,
  };
})();
"""
CONTRASTS = """
const light = (color) => {
  const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const [red, green, blue] = color.match(/[\\d.]+/g).map((part) => linear(part / 255));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05;
};
const contrast = (one, other) => Math.max(light(one), light(other)) / Math.min(light(one), light(other));
const style = (selector, pseudo) => getComputedStyle(document.querySelector(selector), pseudo);
const card = style('.card').backgroundColor;
const fill = (name) => style(`.chart path.${name}`).fill;
return {
  delivered: contrast(fill('delivered'), card),
  failed: contrast(fill('failed'), card),
  'failed on delivered': contrast(fill('failed'), fill('delivered')),
  waiting: contrast(fill('waiting'), card),
  accepted: contrast(style('.chart path.accepted').stroke, card),
  'accepted on delivered': contrast(style('.chart path.accepted').stroke, fill('delivered')),
  ground: contrast(style('.chart .ground').stroke, card),
  key: contrast(style('.key.delivered', '::before').backgroundColor, card),
  input: contrast(style('#letters-reason').borderTopColor, card),
  button: contrast(style('.webhook header button').borderTopColor, card),
};
"""
POSTS = """
const ask = (init) => fetch(arguments[0], {method: 'POST', ...init}).then((answer) => answer.type, (error) => error.name);
const body = JSON.stringify({all: true});
const form = () => new Promise((resolve) => {
  const frame = document.createElement('iframe');
  const form = document.createElement('form');
  const field = document.createElement('input');
  Object.assign(frame, {name: 'target'});
  Object.assign(form, {action: arguments[0], method: 'post', target: 'target', enctype: 'text/plain'});
  Object.assign(field, {name: '{"all": true, "x": "', value: '"}'});
  form.append(field);
  document.body.append(frame, form);
  frame.onload = () => { frame.remove(); form.remove(); resolve('loaded'); };
  form.submit();
});
return (async () => [
  await ask({headers: {'X-Mqhooks': '1', 'content-type': 'application/json'}, body}),
  await ask({body}),
  await ask({mode: 'no-cors', body}),
  await form(),
])();
"""
READS = "return fetch(arguments[0]).then((answer) => answer.type, (error) => error.name)"
FRAMES = """
return new Promise((resolve) => {
  const frame = document.createElement('iframe');
  frame.src = arguments[0];
  frame.onload = resolve;
  document.body.append(frame);
});
"""
