"""What is told of an engine, and of bridges, that are not as they should be."""

import builtins
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import TestCase

from mqhooks.app.configuration import load
from mqhooks.app.tap import Options, makeService
from mqhooks.errors import NATSTimeout
from mqhooks.nats.auth import Auth
from mqhooks.nats.settings import NATSSettings, Server
from mqhooks.outbox.jetstream import store as stores
from mqhooks.outbox.jetstream.examination import UNSYNCED, examine
from mqhooks.outbox.jetstream.store import JetStreamSettings
from tests.contract.outbox import make
from tests.jetstream import JetStreamMixin
from tests.natscluster import Cluster
from tests.natsfake import INFO, Fake
from tests.waiting import until

OLD = (INFO % b"").replace(b"2.15.1", b"2.10.29")


class ExaminationTests(JetStreamMixin, TestCase):
    async def examine(self, nats=None, max_size=8 << 20, webhook="w", **options):
        given = {"replicas": 1, "partitions": 2, "synced": True, **options}
        settings = JetStreamSettings(nats or NATSSettings(self.nodes.servers), **given)
        return await examine(reactor, settings, [webhook], max_size, 10)

    async def problem(self, pattern, **options):
        found = await self.examine(**options)
        self.assertEqual(len(found.problems), 1, found)
        (problem,) = found.problems
        self.assertRegex(problem, pattern)
        self.assertTrue(problem.isprintable())

    async def test_all_is_well(self):
        await self.begin()
        found = await self.examine(synced=False)
        self.assertEqual(found.problems, [])
        self.assertEqual(found.notes, [UNSYNCED, "32 MiB will be reserved on each of 1 servers, within their max_file"])
        self.assertEqual(await self.js.stream_names(), [])
        _, outbox = self.store(partitions=2)
        await self.ready(outbox)
        found = await self.examine()
        self.assertEqual((found.problems, found.notes), ([], []))
        await self.problem("stream MQ_w_0 is not as configured: mqhooks-partitions is 2, not 1: ", partitions=1)

    async def test_a_server_that_is_too_old(self):
        fake = Fake(self, OLD)
        nats = NATSSettings((Server("127.0.0.1", fake.number),))
        told = f"NATS server 127.0.0.1:{fake.number} has version 2.10.29: update it to 2.11 or newer"
        await self.problem(told, nats=nats)
        store, outbox = self.store(nats=nats)
        await until(lambda: store.failing is not None and told in store.failing)
        self.assertTrue(outbox.full)

    async def test_a_webhook_with_too_long_a_name(self):
        await self.begin()
        told = (
            "^webhook ö{40}… has too long a name for JetStream: .* 605 characters, and NATS takes 255: give it a shorter name$"
        )
        await self.problem(told, webhook="ö" * 100)
        store, _ = self.store("ö" * 100)
        await until(lambda: store.failing is not None and store.failing.startswith("webhook"))
        self.assertRegex(store.failing, told)

    async def test_a_webhook_that_is_removed_again_holds_nobody_up(self):
        await self.begin()
        store, outbox = self.store()
        store.configure({"w": ""})
        await self.ready(outbox)
        long = "ö" * 100
        added = store.outbox(long)
        store.configure({"w": "", long: ""})
        await until(lambda: store.failing is not None)
        self.assertTrue(outbox.full)
        store.configure({"w": ""})
        await until(lambda: store.failing is None)
        self.assertEqual((outbox.full, added.started), (False, False))
        # It may come back, and others may be added.
        store.configure({"w": "", long: ""})
        await until(lambda: store.failing is not None)
        other = store.outbox("other")
        store.configure({"w": "", "other": ""})
        await self.ready(other)
        await until(lambda: store.failing is None)

    async def test_nobody_is_there(self):
        found = await self.examine(nats=NATSSettings((Server("127.0.0.1", 1),)))
        self.assertEqual(found.problems, [])
        self.assertRegex(found.notes[0], "no connection to NATS server 127.0.0.1:1: .*; the streams were not checked")

    async def test_without_jetstream(self):
        await self.begin(sync=None)
        await self.problem("has no JetStream: add a jetstream block")

    async def test_a_user_who_may_not(self):
        users = ", ".join(
            f'{{ user: {name}, password: p, permissions: {{ publish: {allowed}, subscribe: ">" }} }}'
            for name, allowed in (("api", '[ "MQ.>" ]'), ("log", '[ "$JS.API.>" ]'), ("u", '">"'))
        )
        self.nodes = await Cluster(self, more=f"authorization {{ users: [ {users} ] }}").start()
        for name, subject in (("api", r"\$JS.API.INFO"), ("log", "MQ.alive.check")):
            nats = NATSSettings(self.nodes.servers, Auth(name, "p"))
            await self.problem(f'Permissions Violation for Publish to "{subject}": check the permissions', nats=nats)
        await self.problem("Authorization Violation|not let", nats=NATSSettings(self.nodes.servers, Auth("u", "wrong")))

    async def test_an_account_with_too_little_storage(self):
        more = "accounts { A { jetstream: { max_store: 20MB }, users: [ { user: u, password: p } ] } }"
        self.nodes = await Cluster(self, more=more).start()
        nats = NATSSettings(self.nodes.servers, Auth("u", "p"))
        await self.problem(
            "too little storage: 32 MiB are needed, and 20 MiB of 20 MiB are left: raise its max_store", nats=nats
        )


class CheckTests(JetStreamMixin, TestCase):
    """``twistd mqhooks --check``."""

    def check(self, partitions):
        path = Path(self.mktemp()).resolve()
        path.write_text(
            'webhook { name = w, url = "http://h/hook", events = [ { event = on_publish } ] }\n'
            f'mqhooks.outbox {{ kind = jetstream, servers = "nats://{self.nodes.servers[0]}", replicas = 1'
            f", partitions = {partitions}, max_size = 1MiB }}"
        )
        printed = []
        self.patch(builtins, "print", printed.append)
        options = Options()
        options.parseOptions(["--config", str(path), "--check"])

        def checked():
            with self.assertRaises(SystemExit) as raised:
                makeService(options)
            return raised.exception.code, "".join(printed)

        return deferToThread(checked)

    async def test_check_looks_at_the_engine(self):
        await self.begin()
        code, printed = await self.check(1)
        self.assertEqual(code, 0)
        self.assertIn(f"warning: outbox: {UNSYNCED}", printed)
        self.assertIn("10 MiB will be reserved", printed)
        _, outbox = self.store("webhook", max_size=1 << 20)
        await self.ready(outbox)
        code, printed = await self.check(2)
        self.assertRegex(code, "^mqhooks: .*: mqhooks.outbox: stream MQ_webhook_0 is not as configured: .* is 1, not 2: ")
        self.assertEqual(printed, "")


class DigestTests(JetStreamMixin, TestCase):
    """A webhook that is configured differently on two bridges."""

    def configured(self, digest, **options):
        store, outbox = self.store(**options)
        store.configure({"w": digest})
        return store, outbox

    async def test_who_has_another_configuration_is_told_and_delivers_nothing(self):
        logged = []
        globalLogPublisher.addObserver(logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, logged.append)
        await self.begin()
        first, one = self.configured("1", partitions=2)
        await self.ready(one)
        second, two = self.configured("2", partitions=2)

        def told(whom):
            what = f"webhook w: is configured differently here than on {whom}: nothing of it is delivered here"
            return any(line.startswith(what) for line in map(formatEvent, logged))

        await until(lambda: told(one.me))
        self.assertTrue(one.ready_to_claim)
        await two.append(make(2))
        await until(lambda: one.counts.pending == 2)
        # The other one is configured anew as well: nobody has the first configuration any more.
        first.configure({"w": "2"})
        await until(lambda: len([each for each in one.partitions if each.mine]) == 1)
        await until(lambda: len([each for each in two.partitions if each.mine]) == 1)
        first.configure({"w": "1"})
        await until(lambda: two.ready_to_claim)
        await second.stopService()
        await self.ready(one)

    async def test_who_cannot_compare_its_configuration_at_first_delivers_once_it_can(self):
        await self.begin()
        self.patch(stores, "AGAIN", 0.1)
        store, outbox = self.configured("1")
        agree, failures = outbox.agree, [NATSTimeout("no answer"), NATSTimeout("no answer")]

        async def late():
            if failures:
                raise failures.pop()
            await agree()

        self.patch(outbox, "agree", late)
        await self.ready(outbox)
        self.assertEqual((failures, store.failing), ([], None))
        await outbox.append(make(1))

    async def test_an_acceptor_with_the_old_configuration_holds_nobody_up(self):
        await self.begin()
        self.configured("1", role="accept")
        store, outbox = self.configured("1", role="deliver")
        await self.ready(outbox)
        await until(lambda: outbox.others)
        store.configure({"w": "2"})

        async def noted():
            return (await self.js.last(outbox.names.letters, outbox.names.note)).payload

        async def changed():
            return await noted() == b"2"

        self.assertEqual(await noted(), b"1")
        await until(changed)
        await self.ready(outbox)

    def test_what_is_in_it(self):
        def digest(text):
            path = Path(self.mktemp())
            path.write_text(f'webhook {{ url = "http://h/hook", events = [ {{ event = on_publish }} ], {text} }}')
            return load(str(path)).webhooks[0].digest

        plain = digest("headers.authorization = a")
        self.assertEqual(digest("headers.authorization = b"), plain)
        self.assertNotEqual(digest("headers.other = a"), plain)
        self.assertNotEqual(digest("headers.authorization = a, ordering = none"), plain)
        secrets = [f"headers.authorization = a, secret = whsec_{'MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz'[:-1]}{end}" for end in "zx"]
        self.assertEqual({digest(secret) for secret in secrets}, {plain})
