"""
The intake: moves deliveries from the outbox through the merge window into the lanes.

- It claims only as many deliveries as the lanes and the memory have room for; the rest stays in the outbox.
- Accept first, order afterwards: window and lanes are in memory only, and a restart begins with the outbox.
- Where bodies take too much memory, only the places of deliveries are kept, and the bodies are recalled when their turn comes.
- Three quarters of the webhook's memory are for claimed bodies, the last quarter is for recalled ones, so that a retry finds
  room beside a backlog.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from mqhooks.delivery import Delivery, Shelved
from mqhooks.errors import OutboxError
from mqhooks.interfaces import IOutbox
from mqhooks.webhook.budget import Budget
from mqhooks.webhook.counters import WebhookCounters
from mqhooks.webhook.lanes import Lanes
from mqhooks.webhook.merge import MergeWindow
from mqhooks.webhook.settings import WebhookSettings

WINDOW = 4096
"""Maximum number of deliveries that are claimed and neither settled nor parked; the others stay in the outbox."""

MOST = 1 << 14
"""Upper limit of :data:`WINDOW` when it has to grow to fill all batches that may be in flight."""

HELD = 1 << 14
"""Maximum number of deliveries that the merge window holds with their bodies: 50 milliseconds at 300,000 a second."""

SHELVED = 1 << 16
"""
Maximum number of deliveries that the merge window holds, including those of which it keeps only the places; and the number of
runs of consecutive places beyond which lanes are not shortened.
"""

PATIENCE = 1.0
"""
Seconds that most lanes must have been idle before a few long ones are shortened. Shortening has a price: parked deliveries have
to be read again.
"""

CLAIMS = 8
"""
Maximum number of claims in one turn of the reactor. Deliveries that are parked at once behind their clients' retries leave room
in the lanes, so without a limit the claims would go on as long as the backlog lasts.
"""

AHEAD = 1 << 20
"""Bytes of bodies, roughly, that are claimed in one turn when only their places are kept."""

AWAITED = 2
"""
Deliveries without room for their bodies that lanes may have before nothing more is claimed. So the deliveries behind a long one
need not wait while it queues for room, and few are read in vain.
"""

SHORT = 1 << 16
"""Upper limit, in bytes, for reserving room to recall a body of which only the place is known."""

LONGEST_COMMIT = 1.0
"""Longest time that the merge window waits for a commit, in seconds."""

UNREADABLE = 1.0
"""Seconds until deliveries that could not be read are recalled again."""


class Intake:
    """
    Fills the lanes of one webhook from its outbox.

    :param clock: for timers.
    :param settings: the webhook's settings.
    :param outbox: holds the pending deliveries; open between :meth:`start` and :meth:`close`.
    :param lanes: get the deliveries.
    :param counters: count the late deliveries.
    :param budget: bounds the bodies in memory.
    :param now: returns the time of day, in seconds since 1970.
    :param pumped: called whenever deliveries may have reached the lanes.
    """

    def __init__(
        self,
        clock: IReactorTime,
        settings: WebhookSettings,
        outbox: IOutbox,
        lanes: Lanes,
        counters: WebhookCounters,
        *,
        budget: Budget,
        now: Callable[[], float],
        pumped: Callable[[], object],
    ) -> None:
        self._clock = clock
        self._seconds = clock.seconds
        self._settings = settings
        self._outbox = outbox
        self._lanes = lanes
        self._counters = counters
        self._budget = budget
        self._now = now
        self._pumped = pumped
        self._window = _window(settings)
        self._low = self._window // 2
        self._stay = max(self._low // settings.pool_size, 1 if settings.batch is None else settings.batch.size)
        merge = settings.merge_window if settings.ordering == "client" else 0
        self._merge = MergeWindow(merge, counters.late) if merge else None
        self._merge_timer: IDelayedCall | None = None
        # Number of deliveries in the window, or released from it, of which only the places are kept.
        self._shelved = 0
        # Deliveries that the window has released and lanes have no room for yet; the bytes of these and the next; and the batch
        # that is being recalled.
        self._due: deque[Delivery | Shelved] = deque()
        self._due_size = 0
        self._recalling: Sequence[Delivery | Shelved] = ()
        self._recall_timer: IDelayedCall | None = None
        self._room_timer: IDelayedCall | None = None
        self._crowded_since: float | None = None
        # Set when the budget lends room, and when the next turn of the reactor has to go on pumping.
        self._turn: IDelayedCall | None = None
        self._soon: IDelayedCall | None = None
        lanes.memory = self
        self._claim: Deferred[Sequence[Delivery]] | None = None
        self._last_arrival = 0.0
        self._pumping = False
        self._running = False

    def start(self) -> None:
        """Start claiming, beginning with the contents of the outbox."""
        self._running = True
        self._budget.join(self, self._held, self.shed)
        self.pump()

    def stop(self) -> None:
        """Claim nothing more."""
        self._running = False
        if self._claim is not None:
            self._claim.cancel()

    def close(self) -> None:
        """Cancel all timers, drop the deliveries that wait, and leave the memory to other webhooks."""
        self.stop()
        self._merge, self._recalling = None, ()
        self._due.clear()
        for timer in (self._merge_timer, self._room_timer, self._recall_timer, self._turn, self._soon):
            if timer is not None and timer.active():
                timer.cancel()
        self._budget.leave(self)

    def go_on(self) -> None:
        """Note that deliveries were settled."""
        if self._claim is not None and not self._due:
            # There is nothing to do until the outbox answers the claim.
            return
        lanes = self._lanes
        if lanes.load <= self._low:
            self.pump()
        elif 2 * lanes.in_flight <= lanes.limit or self._crowded_since is not None:
            self._check_room()

    def pump(self) -> None:
        """Push deliveries whose turn has come into the lanes, and claim as many as there is room for."""
        # An attempt that ends at once calls this again. The deliveries that it makes room for must not overtake those that are
        # being pushed.
        if not self._running or self._pumping:
            return
        self._pumping = True
        try:
            for _ in range(CLAIMS):
                if not (self._release() or self._claim_more()):
                    break
            else:
                self._pump_soon()
        finally:
            self._pumping = False
        if self._merge is not None and len(self._merge) and self._merge_timer is None:
            self._merge_timer = self._clock.callLater(self._settings.merge_window / 5, self._tick)
        self._check_room()
        self._pumped()

    def _claim_more(self) -> bool:
        """Claim as many deliveries as there is room for; return whether any came at once."""
        lanes, merge = self._lanes, self._merge
        if self._claim is not None or lanes.load > self._low:
            return False
        if lanes.awaited >= AWAITED:
            return False
        limit = self._window - lanes.load if merge is None else HELD - len(merge)
        left = self._left - self._margin
        if limit > 0 and left > 0:
            return self._claim_up_to(limit, left)
        # Without a merge window, a body that is too long for the remaining room may go while lanes have nothing else.
        return merge is None and lanes.load <= lanes.in_flight and self._claim_up_to(1, 1)

    def _claim_up_to(self, limit: int, size: int) -> bool:
        claimed = self._outbox.claim(limit, size)
        if isinstance(claimed, Deferred):
            self._claim = claimed
            claimed.addCallbacks(self._claimed, self._not_claimed)
            return False
        self._take(claimed)
        return True

    @property
    def _full(self) -> bool:
        """Whether the merge window has no room in memory for another body."""
        return self._merge is not None and (len(self._merge) >= HELD or self._left <= self._margin)

    @property
    def _stuck(self) -> bool:
        """Whether lanes have nothing to do while the merge window is full of deliveries that may not go yet."""
        lanes = self._lanes
        idle = lanes.load <= self._low and lanes.in_flight < lanes.limit
        return idle and self._claim is None and not self._due and self._full

    @property
    def _crowded(self) -> bool:
        """Whether most lanes have nothing to do while a few take all the room."""
        lanes = self._lanes
        return lanes.load > self._low and 2 * lanes.in_flight <= lanes.limit and lanes.limit > 0

    def _check_room(self) -> None:
        """If needed, replace bodies by places, in another turn of the reactor."""
        if self._stuck:
            delay = 0.0
        elif self._crowded:
            self._crowded_since = since = self._crowded_since or self._seconds()
            delay = max(since + PATIENCE - self._seconds(), 0.0)
        else:
            if 2 * self._lanes.in_flight > self._lanes.limit:
                self._crowded_since = None
            return
        if self._room_timer is None:
            self._room_timer = self._clock.callLater(delay, self._make_room)
        elif not delay:
            self._room_timer.reset(0)

    def _make_room(self) -> None:
        self._room_timer = None
        if not self._running:
            return
        if self._crowded:
            self._shorten()
        elif self._stuck and self._merge is not None:
            self._claim_ahead(self._merge)

    def _shorten(self) -> None:
        """Keep only the places of deliveries far back in long lanes, so that a client's backlog does not hold up the others."""
        if self._lanes.runs < SHELVED and self._lanes.shorten(self._stay):
            self.pump()

    def _claim_ahead(self, merge: MergeWindow) -> None:
        """Have the full window keep only places from now on, so that it restores the order however long the bodies are."""
        if len(merge) < SHELVED:
            self._claim_up_to(self._window, AHEAD)
        else:
            # Even the places are too many: release the earliest events before their time.
            self._put_due(merge.release_oldest(SHELVED // 64))
        self.pump()

    def _held(self) -> int:
        return self._lanes.size + self._due_size + (0 if self._merge is None else self._merge.size)

    @property
    def _most(self) -> int:
        # Deliveries in lanes are not dropped when the outbox is full, so leave half of its room for those that may be dropped.
        return min(self._budget.part, self._outbox.max_size // 2)

    @property
    def _left(self) -> int:
        """Bytes of bodies that may be claimed."""
        return self.room - self._most // 4

    @property
    def _margin(self) -> int:
        """Bytes to leave free in a claim, since its last delivery may exceed the limit."""
        return self._most // 8

    def shed(self) -> None:
        """Keep only the places of deliveries that are not in flight, if their bodies take more than the webhook's part."""
        if self._held() > self._most * 3 // 4:
            self._lanes.shorten(0)
            self._due_size -= sum([len(held.body) for held in self._due])
            self._due = deque([held if isinstance(held, Shelved) else self._shelve(held) for held in self._due])

    # The lanes' Memory.

    @property
    def room(self) -> int:
        """Bytes that may be recalled."""
        left, budget = self._most - self._held(), self._budget
        # This runs for each recalled delivery, and budget.free asks all webhooks: avoid it where possible.
        return min(left, budget.free) if budget.exceeded else left

    @property
    def short(self) -> int:
        """Longest body, in bytes, whose size is not noted beside its place."""
        return min(SHORT, self._most // 16)

    def borrow(self) -> bool:
        """Ask for the room of one body; return whether the next turn of the reactor grants it."""
        if self._running:
            self._budget.borrow(self, self._lent)
        return self._turn is not None and self._turn.active()

    def _lent(self) -> None:
        # Wait for another turn of the reactor: by then the body that had the room before is gone.
        self._turn = self._clock.callLater(0, self._lend)

    def _lend(self) -> None:
        self._lanes.lend()
        self.pump()

    def give_back(self) -> None:
        """Give the borrowed room back."""
        self._budget.give_back(self)

    def missed(self) -> None:
        """Go on although nothing was settled: a delivery was gone."""
        self._pump_soon()

    def _pump_soon(self) -> None:
        if self._soon is None or not self._soon.active():
            self._soon = self._clock.callLater(0, self.pump)

    # Claimed deliveries.

    def _claimed(self, claimed: Sequence[Delivery]) -> None:
        self._claim = None
        self._take(claimed)
        self.pump()

    def _not_claimed(self, failure: Failure) -> None:
        self._claim = None
        failure.trap(CancelledError)

    def _take(self, claimed: Sequence[Delivery]) -> None:
        """Take in claimed deliveries. Nothing is claimed meanwhile: it could overtake them."""
        pumping, self._pumping = self._pumping, True
        try:
            self._sort(claimed)
        finally:
            self._pumping = pumping

    def _sort(self, claimed: Sequence[Delivery]) -> None:
        if self._merge is None:
            self._push(self._fitting(claimed))
            return
        held = [delivery for delivery in claimed if delivery.window]
        if len(held) < len(claimed):
            held, passing = self._behind(claimed, {delivery.client for delivery in held} | self._merge.clients)
            self._push(self._fitting(passing))
        # A backlog was accepted over some time: each delivery waits in the window from its own acceptance on.
        now, wall = self._seconds(), int(self._now() * 1000)
        groups = [held] if held and held[0].accepted == held[-1].accepted else _by_acceptance(held)
        for group in groups:
            arrival = now - max(wall - group[0].accepted, 0) / 1000
            self._last_arrival = arrival = max(arrival, self._last_arrival)
            self._merge.push(list(map(self._shelve, group)) if self._full else self._fitting(group), arrival)

    def _behind(self, claimed: Sequence[Delivery], clients: set[str]) -> tuple[list[Delivery], list[Delivery]]:
        """
        Divide claimed deliveries into those that wait in the window and those that pass it. A delivery that need not wait does
        so all the same while earlier ones of its client wait.

        :param clients: the clients whose deliveries wait.
        """
        held: list[Delivery] = []
        passing: list[Delivery] = []
        leaving = bool(self._due or self._recalling)
        for delivery in claimed:
            waits = delivery.window or leaving or delivery.client in clients
            (held if waits else passing).append(delivery)
        return held, passing

    def _fitting(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery | Shelved]:
        """Keep only the places of deliveries whose bodies do not fit."""
        left = self._left
        if sum([len(delivery.body) for delivery in deliveries]) <= left:
            return deliveries
        fitting: list[Delivery | Shelved] = []
        for delivery in deliveries:
            size = len(delivery.body)
            if size <= left:
                left -= size
                fitting.append(delivery)
            else:
                fitting.append(self._shelve(delivery))
        return fitting

    def _shelve(self, delivery: Delivery) -> Shelved:
        self._shelved += 1
        self._outbox.shelve((delivery.place,))
        return Shelved(delivery.client, delivery.timestamp, delivery.place, len(delivery.body), delivery.id)

    def _push(self, deliveries: Sequence[Delivery | Shelved]) -> None:
        if not self._shelved:
            self._lanes.push(cast("Sequence[Delivery]", deliveries))
            return
        for kind, group in groupby(deliveries, type):
            if kind is Delivery:
                self._lanes.push(cast("list[Delivery]", list(group)))
                continue
            for shelved in cast("Iterable[Shelved]", group):
                self._shelved -= 1
                self._lanes.push_place(shelved)

    def _release(self) -> bool:
        """Push deliveries that the merge window has held long enough; return whether there were any."""
        merge, lanes = self._merge, self._lanes
        if merge is None or not (len(merge) or self._due) or lanes.load > self._low or self._recalling:
            return False
        if not self._due:
            released = merge.release(self._horizon(), self._window - lanes.load)
            self._counters.late = merge.late
            if not self._shelved:
                lanes.push(cast("Sequence[Delivery]", released))
                return bool(released)
            self._put_due(released)
        return bool(self._due) and self._push_due()

    def _put_due(self, released: Sequence[Delivery | Shelved]) -> None:
        self._due.extend(released)
        self._due_size += sum([len(held.body) for held in released])

    def _push_due(self) -> bool:
        """Push released deliveries as far as they fit; return whether any were pushed, and none is being recalled."""
        due, lanes, room = self._due, self._lanes, self.room
        if isinstance(due[0], Shelved) and due[0].size > room:
            if lanes.awaited >= AWAITED or (due[0].size <= self.short and lanes.load):
                return False
            # It borrows room when its lane comes to it.
            self._shelved -= 1
            lanes.push_place(cast("Shelved", due.popleft()))
            return True
        batch: list[Delivery | Shelved] = []
        # A body that is in memory already needs no more room.
        while due and not (isinstance(due[0], Shelved) and due[0].size > room):
            held = due.popleft()
            if isinstance(held, Shelved):
                self._shelved -= 1
                self._due_size += held.size
                room -= held.size
            batch.append(held)
        self._recalling = batch
        self._recall()
        return not self._recalling

    def _recall(self) -> None:
        places = [held.place for held in self._recalling if isinstance(held, Shelved)]
        recall: Callable[[Sequence[int]], Any] = self._outbox.recall
        recalled: Deferred[Sequence[Delivery]] = maybeDeferred(recall, places)
        recalled.addCallbacks(self._recalled, self._not_recalled)

    def _recalled(self, found: Sequence[Delivery]) -> None:
        batch, self._recalling = self._recalling, ()
        self._due_size -= sum([held.size if isinstance(held, Shelved) else len(held.body) for held in batch])
        if not self._running:
            return
        back = {delivery.place: delivery for delivery in found}
        whole = [back.get(held.place) if isinstance(held, Shelved) else held for held in batch]
        pumping, self._pumping = self._pumping, True
        try:
            # Skip deliveries that the outbox had to drop.
            self._lanes.push([delivery for delivery in whole if delivery is not None])
        finally:
            self._pumping = pumping
        self.pump()

    def _not_recalled(self, failure: Failure) -> None:
        failure.trap(OutboxError)
        if self._running:
            self._recall_timer = self._clock.callLater(UNREADABLE, self._recall)

    def _horizon(self) -> float:
        """Return the time up to which everything accepted has also been claimed."""
        if self._claim is None:
            return self._last_arrival
        now, since = self._seconds(), self._outbox.waiting_since
        # A full disk must not hold back the deliveries that would free space.
        return now if since is None else max(since, now - LONGEST_COMMIT)

    def _tick(self) -> None:
        self._merge_timer = None
        self.pump()


def _window(settings: WebhookSettings) -> int:
    if settings.batch is None:
        return WINDOW
    return min(max(WINDOW, 2 * settings.pool_size * settings.batch.size), MOST)


def _by_acceptance(deliveries: Sequence[Delivery]) -> list[list[Delivery]]:
    return [list(group) for _, group in groupby(deliveries, attrgetter("accepted"))]
