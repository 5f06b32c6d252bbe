"""Everything that may go wrong, each thing once; ``make campaign`` does it for longer."""

from twisted.internet import reactor
from twisted.trial.unittest import SkipTest, TestCase

from tests.campaign import scenarios
from tests.campaign.cluster import cluster


class FaultTests(TestCase):
    timeout = 300

    async def play(self, scenario, **settings):
        row = await scenario(reactor, self.id(), **settings)
        if row is None:
            raise SkipTest("no file system may be mounted here")
        self.assertEqual(row.broken, [])
        self.assertGreater(row.delivered, 0)
        return row

    async def test_kills(self):
        await self.play(scenarios.kills, times=3, longest=0.6)

    async def test_kills_while_the_disk_is_waited_for(self):
        await self.play(scenarios.kills, times=2, sync="full", longest=0.6)

    async def test_kills_between_webhooks_and_their_answers(self):
        await self.play(scenarios.kills, times=5, longest=0.6, via="webhooks")

    async def test_orderly_ends(self):
        row = await self.play(scenarios.terms, times=2)
        self.assertEqual(row.twice, 0)

    async def test_an_endpoint_that_misbehaves(self):
        row = await self.play(scenarios.misbehaviour, length=0.2)
        self.assertGreater(row.dead, 0)
        self.assertGreater(row.requests, row.accepted)

    async def test_an_endpoint_that_breaks_off_after_the_head_of_its_answer(self):
        row = await self.play(scenarios.broken_off)
        self.assertEqual(row.requests, row.accepted)

    async def test_an_endpoint_that_is_down(self):
        await self.play(scenarios.down, length=0.8)

    async def test_one_of_two_endpoints_is_down(self):
        await self.play(scenarios.one_of_two)

    async def test_an_outbox_that_is_full(self):
        row = await self.play(scenarios.overfull, on_full="pause")
        self.assertEqual(row.dropped, 0)

    async def test_an_outbox_that_drops_what_is_oldest(self):
        row = await self.play(scenarios.overfull, on_full="drop_oldest")
        self.assertGreater(row.dropped, 0)

    async def test_a_disk_that_is_full(self):
        await self.play(scenarios.disk_full)

    async def test_writes_that_fail(self):
        await self.play(scenarios.unwritable)

    async def test_writes_that_fail_before_webhooks_are_answered(self):
        await self.play(scenarios.unwritable, via="webhooks")

    async def test_an_end_while_writes_fail(self):
        await self.play(scenarios.unwritable_end)

    async def test_damage_that_is_found_at_the_start(self):
        await self.play(scenarios.damage, kind="the header")

    async def test_damage_that_is_found_later(self):
        await self.play(scenarios.damage, kind="a third of the pages")

    async def test_a_clock_that_jumps(self):
        await self.play(scenarios.clock)

    async def test_a_cluster_of_bridges_and_servers(self):
        kinds = (
            "a deliverer killed, 3 s",
            "a server of NATS killed, 3 s",
            "the clock of an acceptor jumps by an hour, and back",
            "an acceptor killed, 3 s",
            "the endpoint away; all that waits counted",
        )
        row = await self.play(cluster, times=len(kinds), kinds=kinds, hold=0.5)
        self.assertEqual(set(row.silences), set(kinds))
        self.assertGreater(row.dead, 0)
