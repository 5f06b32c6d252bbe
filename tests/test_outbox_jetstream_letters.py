"""Dead letters in JetStream: from every bridge, by the API and by the command."""

import json
import sys
from io import StringIO
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults, succeed
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mqhooks.__main__ import main
from mqhooks.admin.bridge import Bridge
from mqhooks.admin.server import AdminService
from mqhooks.admin.settings import AdminSettings
from mqhooks.app.settings import Settings
from mqhooks.errors import OutboxError
from mqhooks.outbox.deadletters import ANY, Filter
from mqhooks.outbox.jetstream.letters import SharedLetters
from tests.admin import ANYWHERE, AdminCase
from tests.contract.outbox import make
from tests.jetstream import JetStreamMixin
from tests.waiting import until

TWO = ("billing", "größe.x")


class Burying(JetStreamMixin):
    async def bury(self, outbox, count, start=0, **more):
        await outbox.append(make(count, start, **more))
        await self.bury_claimed(outbox, count)

    async def bury_claimed(self, outbox, count):
        for delivery in await self.claim(outbox, count):
            outbox.bury(delivery, "http://h/hook?key=secret", "answered 410", 410, b"gone", 2000 + delivery.timestamp)
        await until(lambda: outbox.settled)


class SharedTests(Burying, TestCase):
    async def test_buried_here_replayed_and_purged_there(self):
        await self.begin()
        first, one = self.store(*TWO)
        await self.ready(one)
        await self.bury(one, 3)
        await self.bury(first.outbox(TWO[1]), 1)
        # A bridge without any of these webhooks.
        second, _ = self.store("other")
        letters = second.letters
        await until(lambda: second.failing is None)
        self.assertEqual(await letters.webhooks(), ["billing", TWO[1], "other"])
        self.assertEqual(await letters.counts(), {"billing": 3, TWO[1]: 1})
        found, following = await letters.read(ANY, 0, 100)
        self.assertEqual([(each.webhook, each.delivery.id) for each in found][:3], [("billing", f"msg_{n}") for n in range(3)])
        self.assertEqual((found[3].webhook, found[0].reason, found[0].answer), (TWO[1], "answered 410", b"gone"))
        self.assertEqual(await letters.read(ANY, following, 100), ([], None))
        narrow = Filter(client="client-1", since=2001, until=2002)
        self.assertEqual([each.delivery.id for each in (await letters.read(narrow, 0, 100))[0]], ["msg_1"])
        numbers = [each.number for each in found]
        self.assertEqual(await letters.replay([numbers[1], 999]), 1)
        self.assertEqual(await letters.replay([numbers[1]]), 0)
        (again,) = await self.claim(one, 1)
        self.assertEqual((again.id, again.client, again.body), ("msg_1", "client-1", b"{}"))
        self.assertGreater(again.accepted, 10**12)
        self.assertEqual(await letters.purge(numbers[2:]), 2)
        self.assertEqual(await letters.purge(numbers[2:]), 0)
        await until(lambda: one.letters == 1 and first.outbox(TWO[1]).letters == 0)
        counts = one.counts
        self.assertEqual((counts.accepted, counts.replayed, counts.dead, counts.pending), (4, 1, 3, 1))

    async def test_replayed_from_two_bridges_at_once_it_is_delivered_once(self):
        await self.begin()
        first, one = self.store()
        await self.ready(one)
        second, _ = self.store()
        await self.bury(one, 5)
        found, _ = await first.letters.read(ANY, 0, 100)
        numbers = [each.number for each in found]
        counts = await gatherResults([ensureDeferred(store.letters.replay(numbers)) for store in (first, second)])
        self.assertEqual(sum(counts), 5)
        await until(lambda: first.failing is None and second.failing is None)
        info = await self.js.call("STREAM.INFO.MQ_w_0", {"subjects_filter": "MQ.log.>"})
        # The message that was buried is there until it is purged.
        self.assertLessEqual(info["state"]["subjects"]["MQ.log.w.0"], 6)

    async def test_buried_is_settled_only_once_the_letter_is_stored(self):
        await self.begin()
        store, outbox = self.store()
        await self.ready(outbox)
        await outbox.append(make(1))
        (delivery,) = await self.claim(outbox, 1)
        self.nodes.stop(0)
        outbox.bury(delivery, "http://h/", "answered 410", 410, b"", 1)
        self.assertFalse(outbox.settled)
        await store.abort()
        self.nodes.go_on(0)
        _, outbox = self.store()
        (again,) = await self.claim(outbox, 1)
        self.assertEqual(again.id, delivery.id)

    async def test_buried_again_after_a_crash_is_one_letter(self):
        await self.begin()
        store, outbox = self.store()
        await self.ready(outbox)
        await outbox.append(make(1))
        # It ends before the next checkpoint.
        await self.bury_claimed(outbox, 1)
        await store.abort()
        store, outbox = self.store()
        await self.bury_claimed(outbox, 1)
        self.assertEqual((outbox.letters, await store.letters.counts()), (1, {"w": 1}))

    async def test_the_oldest_make_room(self):
        await self.begin()
        store, outbox = self.store(dead_max=3)
        await self.ready(outbox)
        await self.bury(outbox, 5)
        found, _ = await store.letters.read(ANY, 0, 100)
        self.assertEqual([each.delivery.id for each in found], ["msg_2", "msg_3", "msg_4"])
        self.assertEqual((outbox.letters, outbox.counts.forgotten), (3, 2))

    async def test_what_cannot_be_read_is_damaged_and_can_be_purged(self):
        await self.begin()
        store, outbox = self.store()
        await self.ready(outbox)
        ack = await self.js.publish("MQ.dead.w", b"\xc1")
        (letter,), _ = await store.letters.read(ANY, 0, 100)
        self.assertIn("cannot be read", letter.damage)
        error = await self.assertFailure(ensureDeferred(store.letters.replay([ack.seq])), OutboxError)
        self.assertIn("cannot be replayed", str(error))
        self.assertEqual(await store.letters.purge([ack.seq]), 1)

    async def test_nothing_is_replayed_into_a_full_stream(self):
        await self.begin()
        store, outbox = self.store(max_size=1 << 20)
        await self.ready(outbox)
        await self.bury(outbox, 1)
        outbox.append(make(8, 1, body=b"x" * (200 << 10)))
        await until(lambda: outbox.counts.pending == 8)
        (letter,), _ = await store.letters.read(ANY, 0, 100)
        error = await self.assertFailure(ensureDeferred(store.letters.replay([letter.number])), OutboxError)
        self.assertIn("stream MQ_w_0 is full", str(error))
        self.assertEqual(await store.letters.counts(), {"w": 1})


class LastTests(SynchronousTestCase):
    def test_all_means_all_of_them_when_the_newest_one_is_deleted(self):
        class Stream:
            """Answers as servers before 2.12.6 do when the last message of a subject was deleted."""

            def last(self, stream, subject):
                return succeed(None)

            def stream_info(self, stream):
                return succeed({"state": {"first_seq": 3, "last_seq": 9}})

        letters = SharedLetters(Stream(), "MQ", lambda: 0)
        self.assertEqual(self.successResultOf(ensureDeferred(letters.last())), 9)


class CommandTests(Burying, TestCase):
    """``mqhooks dead`` where there is no file."""

    def config(self, servers=None, more=""):
        path = Path(self.mktemp()).resolve()
        names = ", ".join(f'"nats://{server}"' for server in servers or self.nodes.servers)
        path.write_text(
            f"webhook {{ url = ${{MQHOOKS_UNSET}} }}\n"
            f"mqhooks {{ admin.token = ${{MQHOOKS_UNSET}}, outbox {{ kind = jetstream, servers = [{names}] {more} }} }}"
        )
        return str(path)

    async def run_command(self, *arguments, status=0, config=None):
        lines, stderr = [], StringIO()
        self.patch(sys, "stderr", stderr)
        command = ["dead", *arguments, "--config", config or self.path]
        got = await deferToThread(main, command, lines.append)
        self.errors = stderr.getvalue()
        self.assertEqual(got, status, self.errors)
        return lines

    async def test_all_of_it(self):
        await self.begin()
        _, outbox = self.store()
        await self.ready(outbox)
        await self.bury(outbox, 4)
        self.path = self.config()
        lines = await self.run_command("list")
        self.assertEqual(len(lines), 4)
        self.assertRegex(lines[0], r"^\d+  1970-01-01T00:00:02Z  w  msg_0  client-0  answered 410$")
        numbers = [line.split()[0] for line in lines]
        shown = "\n".join(await self.run_command("show", numbers[1]))
        self.assertIn("msg_1", shown)
        self.assertNotIn("secret", shown)
        (group,) = await self.run_command("list", "--groups", "--json")
        self.assertEqual(json.loads(group)["count"], 4)
        file = str(Path(self.path).parent / f"{Path(self.path).name}.jsonl")
        self.assertIn("export: 4 dead letters", (await self.run_command("export", file))[0])
        self.assertEqual(await self.run_command("replay", numbers[0]), ["replay: requested for 1; done"])
        self.assertEqual(await self.run_command("purge", "--all", "--webhook", "w"), ["purge: requested for 3; done"])
        self.assertEqual((await self.claim(outbox, 1))[0].id, "msg_0")
        self.assertEqual(await self.run_command("import", file), ["import: 4 deliveries were handed over; done"])
        self.assertEqual([each.id for each in await self.claim(outbox, 4)], [f"msg_{n}" for n in range(4)])
        self.assertIn("nothing to do", (await self.run_command("import", file))[0])
        self.assertEqual(await self.run_command("import", "--as-dead", file), ["import: 4 dead letters were handed over; done"])
        self.assertEqual(len(await self.run_command("list")), 4)
        await self.run_command("list", "--webhook", "nobody", status=1)
        self.assertIn("has no webhook nobody; it has w", self.errors)
        await self.run_command("show", "999", status=1)
        self.assertEqual(self.errors, "mqhooks: there is no dead letter 999\n")

    async def test_an_import_goes_on_where_it_stopped(self):
        await self.begin()
        _, outbox = self.store()
        await self.ready(outbox)
        self.path = self.config()
        line = '{"webhook": "w", "id": "%s", "client": "c", "body": "e30="}\n'
        file = Path(self.path + ".jsonl")
        file.write_text("".join(line % f"a{n}" for n in range(5)) + line.replace("e30=", "A" * (2 << 20)) % "long")
        await self.run_command("import", str(file), status=1)
        self.assertRegex(self.errors, r"^mqhooks: line 6: .*max_payload is 1048576[^\n]*\n$")
        self.assertEqual([each.id for each in await self.claim(outbox, 5)], [f"a{n}" for n in range(5)])

    async def test_import_of_a_file_that_cannot_be_read_ends_in_one_line(self):
        await self.begin()
        _, outbox = self.store()
        await self.ready(outbox)
        self.path = self.config()
        await self.run_command("import", "/proc/self/mem", status=1)
        self.assertRegex(
            self.errors, r"^mqhooks: /proc/self/mem: cannot be read, or copied to a temporary file \(Input/output error\)\n$"
        )

    async def test_mistakes(self):
        await self.begin()
        self.path = self.config()
        await self.run_command("list", status=1)
        self.assertEqual(
            self.errors, "mqhooks: there is no stream MQ_DEAD: mqhooks makes it when it starts; check outbox.prefix\n"
        )
        await self.run_command("list", status=1, config=self.config(more=", user = u, password = ${MQHOOKS_UNSET}"))
        self.assertRegex(self.errors, "^mqhooks: .*mqhooks.outbox.password: set the environment variable that it refers to\n$")
        await self.run_command("list", status=1, config=self.config(more=", replicas = 2"))
        self.assertIn("mqhooks.outbox.replicas: 2 is not 1, 3 or 5", self.errors)


class ApiTests(Burying, AdminCase):
    """The API on a bridge whose outbox is in JetStream."""

    async def test_list_show_replay_and_purge(self):
        await self.begin()
        _, outbox = self.store()
        await self.ready(outbox)
        await self.bury(outbox, 6)
        engine, _ = self.store("other")
        bridge = Bridge(Settings(), [], [], None, engine=engine)
        admin = AdminService(reactor, bridge, AdminSettings(ANYWHERE))
        admin.startService()
        self.addCleanup(admin.stopService)
        await until(lambda: engine.failing is None)
        self.origin = f"http://127.0.0.1:{admin.address.port}"
        path = "/api/dead-letters"
        found = await self.json(f"{path}?limit=4")
        self.assertEqual((len(found["letters"]), found["total"]), (4, 6))
        rest = await self.json(f"{path}?limit=4&after={found['next']}")
        self.assertEqual((len(rest["letters"]), rest["next"]), (2, None))
        numbers = [each["id"] for each in found["letters"] + rest["letters"]]
        self.assertEqual((await self.json(f"{path}?client=client-1"))["total"], 2)
        shown = await self.json(f"{path}/{numbers[0]}")
        self.assertEqual((shown["request"]["body"], shown["answer"]["body"]), ("{}", "gone"))
        self.assertEqual(await self.json(f"{path}/{numbers[0]}/replay", "POST"), {"count": 1})
        await self.refused(404, f"{path}/{numbers[0]}/replay", "POST")
        self.assertEqual(await self.json(f"{path}/{numbers[1]}", "DELETE"), {"count": 1})
        self.assertEqual(await self.json(f"{path}/replay", "POST", body={"ids": numbers[:3]}), {"count": 1})
        self.assertEqual(await self.json(f"{path}/replay", "POST", body={"client": "client-0"}), {"count": 1})
        self.assertEqual([each.id for each in await self.claim(outbox, 3)], ["msg_0", "msg_2", "msg_3"])
        self.assertEqual(await self.json(f"{path}/purge", "POST", body={"all": True}), {"count": 2})
        self.nodes.kill(0)
        await until(lambda: engine.failing is not None)
        self.assertIn("NATS", await self.refused(503, path))
        self.assertIn("NATS", await self.refused(503, f"{path}/purge", "POST", body={"ids": numbers}))
