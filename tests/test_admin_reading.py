"""The status page as a reader without JavaScript gets it."""

from html.parser import HTMLParser

from twisted.internet import reactor

from mqhooks.admin.settings import AdminSettings
from mqhooks.sinks import LogSink
from tests.admin import ANYWHERE, TOKEN, AdminCase
from tests.test_admin_api import unreadable
from tests.waiting import until

HOSTILE = '</noscript><script>alert(1)</script>&"\u202e'


class Texts(HTMLParser):
    """The texts of a part of a page, and the tags in it."""

    def __init__(self, html):
        super().__init__()
        self.texts, self.tags = [], []
        self.feed(html)

    def handle_data(self, data):
        self.texts += [data.strip()] if data.strip() else []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)


class ReadingTests(AdminCase):
    async def read(self, **options):
        """Get the page; gives what stands in its noscript."""
        code, self.html = await self.ask("/", **options)
        self.assertEqual((code, self.headers["content-type"]), (200, "text/html; charset=utf-8"))
        self.assertEqual(self.html.count("<noscript>"), 1)
        part, end, _ = self.html.partition("<noscript>")[2].partition("</noscript>")
        self.assertEqual(end, "</noscript>")
        return Texts(part)

    async def test_all_that_matters_is_there(self):
        await self.start(answer=lambda request: request.connection.reply(503, b"come back\n on Monday"))
        text = " ".join((await self.read()).texts)
        status = await self.json("/api/status")
        self.assertIn("All is well", text)
        self.assertIn(f"<title>mqhooks on {status['host']} · {status['version']}</title>", self.html)
        self.assertIn("billing not tried yet 0 none 0 none yet", text)
        self.assertNotIn("Dead letters", text)
        self.publish(1)
        await until(lambda: self.sinks[0].retrying or self.sinks[0].down_since)
        text = " ".join((await self.read()).texts)
        self.assertRegex(text, r"billing (up|down) 1 \d s 0 \d{4}-\d\d-\d\dT\S+Z 503 come back on Monday")
        self.assertRegex(text, r"sidecar on 127\.0\.0\.1:\d+: connections 1, events 1, malformed 0, refused 0, [\d.]+ events/s")
        self.assertIn("Times are UTC", text)

    async def test_dead_letters_that_are_alike_are_one_line(self):
        await self.start("billing", "audit")
        await self.bury(12)
        texts = (await self.read()).texts
        self.assertEqual([text for text in texts if text == "12"], ["12", "12", "12", "12"])
        self.assertEqual(len([text for text in texts if text.endswith("answered 422: the endpoint refuses it")]), 2)

    async def test_dead_letters_that_cannot_be_read_hide_nothing_else(self):
        await self.start()
        await self.bury(1)
        self.patch(self.store, "stretch_of_dead", unreadable)
        text = " ".join((await self.read()).texts)
        self.assertIn("They cannot be read: disk I/O error", text)
        self.assertIn("1 dead letter", text)

    async def test_webhooks_that_are_replaced_while_it_is_made(self):
        await self.start("billing", "audit")
        await self.bury(1)
        read = self.store.stretch_of_dead

        def replaced(after):
            self.bridge.webhooks.pop()
            self.patch(self.store, "stretch_of_dead", read)
            return read(after)

        self.patch(self.store, "stretch_of_dead", replaced)
        self.assertIn("audit", (await self.read()).texts)

    async def test_outbox_in_memory_and_other_sinks(self):
        await self.start(memory=True)
        self.bridge.sinks = {HOSTILE: LogSink(reactor, self.mktemp())}
        text = " ".join((await self.read()).texts)
        self.assertIn("is not running: file: ", text)
        self.assertIn(HOSTILE.replace("\u202e", "\\u202e"), text)

    async def test_what_strangers_say_is_text(self):
        await self.start(answer=lambda request: request.connection.reply(503, HOSTILE.encode()))
        self.publish(30)
        await until(lambda: self.sinks[0].down_since)
        found = await self.read()
        self.assertEqual([tag for tag in found.tags if tag in ("script", "noscript")], [])
        self.assertEqual(self.html.count("<script"), 1)
        self.assertIn(HOSTILE.replace("\u202e", "\\u202e"), " ".join(found.texts))

    async def test_only_who_has_the_token_reads_it(self):
        await self.start(admin=AdminSettings(ANYWHERE, token=TOKEN))
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            (text, *_) = (await self.read(headers=headers)).texts
            self.assertIn("This page needs JavaScript, or the token", text)
            self.assertIn("<title>mqhooks</title>", self.html)
            self.assertNotIn("billing", self.html)
        self.assertIn("billing", " ".join((await self.read(headers={"Authorization": f"Bearer {TOKEN}"})).texts))
