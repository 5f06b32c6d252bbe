"""The scenarios: coroutines, each of which causes faults and returns a row of the table."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
from contextlib import asynccontextmanager, closing, suppress

from mqhooks.outbox.aside import damaged_files
from mqhooks.outbox.salvage import salvage
from tests.campaign.clock import DayTime
from tests.campaign.stage import Stage

PAGE = 4096
UNWRITABLE = "cannot be written"
"""The words in the bridge's log about an outbox that cannot be written."""


@asynccontextmanager
async def staged(*args, **settings):
    """Make a stage for the ``with``, and clean it up at the end."""
    stage = Stage(*args, **settings)
    try:
        yield stage
    finally:
        await stage.clean()


# The process.


async def kills(reactor, seed, *, times=5, sync="normal", longest=1.0, via="sidecar"):
    """Send SIGKILL at random moments under load; the endpoint is fast, slow or fails now and then."""
    async with staged(reactor, seed, outbox=f"sync = {sync}", via=via, rate=1500) as stage:
        endpoint = stage.endpoint
        behaviours = [endpoint.accept, endpoint.after(0.02), endpoint.shares(stage.random, {500: 0.02, 410: 0.01})]
        for time in range(times):
            endpoint.behave = behaviours[time % len(behaviours)]
            await stage.start()
            await stage.wait(stage.random.uniform(0, longest))
            await stage.kill()
            stage.audit()
        endpoint.behave = endpoint.accept
        await stage.start()
        await stage.wait(0.3)
        if stage.refused:
            stage.broken.append(f"{stage.refused} events were refused")
        what = ", VerneMQ's webhooks: each 200 has arrived" if via == "webhooks" else ""
        return await stage.finish(f"{times} times SIGKILL under load, ``sync = {sync}``{what}")


async def terms(reactor, seed, *, times=3):
    """Send SIGTERM at random moments under load."""
    async with staged(reactor, seed, rate=1500) as stage:
        stage.endpoint.behave = stage.endpoint.after(0.01)
        for _ in range(times):
            await stage.start()
            await stage.wait(stage.random.uniform(0.1, 0.8))
            await stage.terminate()
            stage.audit()
        stage.endpoint.behave = stage.endpoint.accept
        await stage.start()
        await stage.wait(0.2)
        return await stage.finish(f"{times} times SIGTERM under load")


# The endpoint.


async def misbehaviour(reactor, seed, *, times=1, length=0.6):
    """Have the endpoint misbehave in one way after the other, and be healthy in between."""
    async with staged(reactor, seed, rate=600) as stage:
        endpoint = stage.endpoint
        refuses = endpoint.shares(stage.random, {500: 0.3, 410: 0.05, 408: 0.02, 425: 0.02})
        behaviours = [
            endpoint.reset(head=False),
            endpoint.silence,
            endpoint.garbage,
            endpoint.drip(0.002),
            endpoint.drip(0.05),
            endpoint.busy(stage.random, 0.02, 1),
            refuses,
            endpoint.shares(stage.random, {503: 1.0}),
        ]
        await stage.start()
        for _ in range(times):
            for behave in stage.random.sample(behaviours, len(behaviours)):
                endpoint.behave = behave
                await stage.wait(length)
                if behave is refuses:
                    await stage.until(
                        lambda: any(arrival.status == 410 for arrival in endpoint.arrivals), "something is refused"
                    )
                endpoint.behave = endpoint.accept
                await stage.until(lambda: stage.counters()["hook"][-1] < 100, "recovery")
        return await stage.finish(
            "an endpoint that resets, is silent, answers garbage, byte by byte, 408, 410, 425, 429, 500, 503"
        )


async def broken_off(reactor, seed, *, length=0.5):
    """Have the endpoint answer 200, and break off before the body."""
    async with staged(reactor, seed, rate=600) as stage:
        stage.endpoint.behave = stage.endpoint.reset(head=True)
        await stage.start()
        await stage.wait(length)
        stage.endpoint.behave = stage.endpoint.accept
        return await stage.finish("an endpoint that resets after the head of its answer")


async def down(reactor, seed, *, times=2, length=1.5):
    """Close the endpoint's port for a while; every other time, kill the bridge meanwhile."""
    async with staged(reactor, seed, rate=1500) as stage:
        await stage.start()
        for time in range(times):
            await stage.wait(0.3)
            await stage.endpoint.close()
            await stage.wait(length / 2)
            if time % 2:
                await stage.kill()
                await stage.start()
            await stage.wait(length / 2)
            stage.endpoint.open()
            await stage.wait(0.5)
        return await stage.finish(f"an endpoint that is down, {times} times, with {times // 2} SIGKILL meanwhile")


async def one_of_two(reactor, seed, *, length=1.0):
    """Close the endpoint of one of two webhooks, and check that the other is not held up."""
    rate = 800
    async with staged(reactor, seed, webhooks=("one", "two"), rate=rate) as stage:
        await stage.start()
        await stage.wait(0.3)
        await stage.endpoints["one"].close()
        await stage.wait(length)
        await stage.keeps_up("two", rate / 2, "the other webhook is not held up")
        await stage.kill()
        await stage.start()
        await stage.wait(0.3)
        stage.endpoints["one"].open()
        return await stage.finish("two webhooks, the endpoint of one is down, SIGKILL meanwhile")


async def overfull(reactor, seed, *, on_full, times=1):
    """Close the endpoint until the outbox has no room left, and then kill the bridge."""
    async with staged(reactor, seed, outbox=f"max_size = 1MiB, on_full = {on_full}", rate=4000, size=300) as stage:
        await stage.start()
        await stage.wait(0.3)
        for _ in range(times):
            await stage.endpoint.close()
            await stage.wait(1.5)
            if on_full == "drop_oldest":
                await stage.until(lambda: stage.counters()["hook"][3], "something is dropped")
            await stage.kill()
            stage.audit()
            await stage.start()
            await stage.wait(1.0)
            stage.endpoint.open()
            await stage.wait(1.0)
        return await stage.finish(f"no room for what waits, ``on_full = {on_full}``, {times} SIGKILL meanwhile")


# The disk.


async def disk_full(reactor, seed, *, times=1):
    """Fill the outbox's file system, and free it again; return ``None`` where no file system may be mounted."""
    async with staged(reactor, seed) as home:
        directory = home.mktemp()
        if not _mounted(directory):
            return None
        try:
            async with staged(reactor, seed, directory=directory, rate=1500, size=400) as stage:
                return await _fill_and_free(stage, os.path.join(directory, "filler"), times)
        finally:
            subprocess.run(["umount", directory], check=True)


async def _fill_and_free(stage, filler, times):
    await stage.start()
    await stage.wait(0.4)
    for time in range(times):
        # Delivered events leave pages that later ones fit into; waiting ones need new pages.
        await stage.endpoint.close()
        _fill(filler)
        stage.unnoted()
        await stage.until(lambda: stage.says(UNWRITABLE), "the disk is full")
        await stage.wait(0.6)
        if time % 2:
            await stage.kill()
        os.unlink(filler)
        if time % 2:
            await stage.start()
        stage.endpoint.open()
        await stage.wait(1.2)
    return await stage.finish(f"disk full, {times} times, with {times // 2} SIGKILL meanwhile", said=UNWRITABLE)


def _fill(path):
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        for size in (1 << 16, 1 << 12, 1 << 9):
            block = bytes(size)
            while file.write(block) == size:
                pass


def _mounted(directory):
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", directory]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


async def unwritable(reactor, seed, *, times=1, via="sidecar"):
    """Forbid files to grow (``RLIMIT_FSIZE``), and then allow it again."""
    async with staged(reactor, seed, via=via, rate=1500, size=400) as stage:
        await stage.start()
        await stage.wait(0.4)
        for _ in range(times):
            await stage.endpoint.close()
            _limit_files(stage, 1 << 16)
            await stage.until(lambda: stage.says(UNWRITABLE), "writes fail")
            if via == "webhooks":
                await stage.until(lambda: stage.refused, "events are refused")
            await stage.wait(0.6)
            _limit_files(stage, resource.RLIM_INFINITY)
            stage.endpoint.open()
            await stage.wait(1.2)
        what = ", VerneMQ's webhooks: each 200 has arrived" if via == "webhooks" else ""
        return await stage.finish(f"writes that fail, {times} times{what}", said=UNWRITABLE)


async def unwritable_end(reactor, seed):
    """Send SIGTERM while no file may grow: the bridge has to end, and must not lose accepted events."""
    async with staged(reactor, seed, rate=1500, size=400) as stage:
        await stage.start()
        await stage.wait(0.4)
        await stage.endpoint.close()
        _limit_files(stage, 1 << 16)
        stage.unnoted()
        await stage.until(lambda: stage.says(UNWRITABLE), "writes fail")
        await stage.terminate()
        stage.endpoint.open()
        await stage.start()
        await stage.wait(0.3)
        return await stage.finish("SIGTERM while writes fail", said=UNWRITABLE)


def _limit_files(stage, size):
    resource.prlimit(stage.bridge.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


# The file.


async def damage(reactor, seed, *, kind):
    """Damage the outbox between two runs while much is pending, and salvage what is left of it."""
    async with staged(reactor, seed, rate=3000) as stage:
        await stage.start()
        await stage.wait(0.3)
        await stage.endpoint.close()
        await stage.wait(0.7)
        if kind == "free pages":
            # Delivered events leave free pages.
            stage.endpoint.open()
            await stage.wait(1.0)
            await stage.until(lambda: stage.free_pages() > 20, "pages are free")
            await stage.endpoint.close()
        killed = stage.random.random() < 0.5
        await (stage.kill() if killed else stage.terminate())
        with closing(sqlite3.connect(stage.outbox)) as connection:
            # Otherwise the log would overwrite the damage.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        counters = stage.audit()["hook"]
        DAMAGES[kind](stage)
        await stage.start()
        stage.unnoted()
        stage.endpoint.open()
        await stage.wait(0.5)
        if stage.says("the next start sets it aside"):
            # The bridge has found the damage while it ran, and ends: start it again, as a supervisor would.
            await stage.ended()
            await stage.start()
            await stage.wait(0.3)
        for path in damaged_files(str(stage.outbox)):
            handed = int(salvage(path, str(stage.outbox)).partition(" ")[0])
            # The file that took its place counts from 0, and salvaged deliveries come after those accepted since.
            stage.set_aside(delivered=counters[1], pending=counters[-1], handed=handed)
        how = "SIGKILL" if killed else "SIGTERM"
        return await stage.finish(f"the outbox damaged after {how}: {kind}", said="is damaged")


def _overwrite(stage, offset, count):
    with stage.outbox.open("r+b") as file:
        file.seek(offset)
        file.write(stage.random.randbytes(count))


def _overwrite_middle(stage, count):
    _overwrite(stage, _size(stage) // 3 // PAGE * PAGE + stage.random.randrange(PAGE), count)


def _overwrite_free(stage):
    with stage.outbox.open("rb") as file:
        # In SQLite's file format, this is the number of the first page in the list of free ones.
        first = int.from_bytes(file.read(100)[32:36], "big")
    assert first, "no page is free"
    _overwrite(stage, (first - 1) * PAGE, PAGE)


def _size(stage):
    return stage.outbox.stat().st_size


DAMAGES = {
    "the header": lambda stage: _overwrite(stage, 0, 100),
    "the first page": lambda stage: _overwrite(stage, 0, PAGE),
    "the counters": lambda stage: _overwrite(stage, PAGE, PAGE),
    "some bytes": lambda stage: _overwrite_middle(stage, 64),
    "a third of the pages": lambda stage: _overwrite_middle(stage, _size(stage) // 3),
    "free pages": _overwrite_free,
    "the last third, cut off": lambda stage: os.truncate(stage.outbox, _size(stage) * 2 // 3),
    "everything": lambda stage: os.truncate(stage.outbox, 0),
}


# The clock.


async def clock(reactor, seed, *, jumps=(3600.0, -3600.0), restart=False):
    """Let the time of day jump: no timer may stop or fire too early."""
    rate = 600
    async with staged(reactor, seed) as home:
        daytime = DayTime(home.mktemp())
        async with staged(reactor, seed, before=daytime.before, rate=rate) as stage:
            await stage.start()
            for jump in jumps:
                stage.endpoint.behave = stage.endpoint.shares(stage.random, {500: 0.1})
                await stage.wait(0.5)
                daytime.set(jump)
                if restart:
                    await stage.kill()
                    await stage.start()
                await stage.wait(1.0)
                await stage.keeps_up("hook", rate * 0.75, f"deliveries keep up after a jump to {jump:+g} s")
                stage.endpoint.behave = stage.endpoint.accept
            times = "once" if len(jumps) == 1 else f"{len(jumps)} times"
            return await stage.finish(f"the clock jumps by an hour and more, {times}{', SIGKILL meanwhile' * restart}")
