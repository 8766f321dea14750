"""What waits for one model: levels by priority, and in each a lane for every kind of batch.

Who leaves next: the highest level that has anybody; in it the lane whose head is due first. So
that no level waits for ever behind busier ones, a request that has waited for ``STARVING_S``
below others gets every ninth batch (``_TURNS`` above it, then one for it).

The last level is for requests whose queue timeout came and that their model's policy delays
instead of refusing: they run when nothing else waits, or by the same ninth turn.

Rules for this file: no decision about time; the policy and the batcher make those.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple

from tensorferry.batching.lane import Lane
from tensorferry.batching.padding import fill_order
from tensorferry.batching.pending import NEVER, WAITING, Pending
from tensorferry.batching.policy import QueueView
from tensorferry.model import Key

__all__ = ["STARVING_S", "Place", "WaitingQueue"]

#: A request below busier levels that has waited this long gets a turn.
STARVING_S: Final = 1.0
_TURNS: Final = 8

#: Sweeping costs a pass over the queue; this many dead entries are cheaper to keep.
_SWEEP_SLACK: Final = 256


class Place(NamedTuple):
    """A lane's address, and the request at its head."""

    level: int
    key: Key
    head: Pending


class WaitingQueue:
    """Waiting requests of ``levels`` priority levels; level 0 is the highest."""

    __slots__ = ("_dead", "_lanes", "_passed", "count", "counts", "delayed_counts", "rows")

    def __init__(self, levels: int = 1) -> None:
        self._lanes: list[dict[Key, Lane]] = [{} for _ in range(levels + 1)]
        self._dead = 0
        self._passed = 0
        self.count = 0
        #: By level: requests, and their rows. The last level holds the delayed ones.
        self.counts = [0] * (levels + 1)
        #: The delayed ones, by the level at which they came.
        self.delayed_counts = [0] * (levels + 1)
        self.rows = [0] * (levels + 1)

    def push(self, request: Pending) -> None:
        """Add a waiting request to its level."""
        level, bound = request.level, request.bound
        lane = self._lanes[level].get(bound.key)
        if lane is None:
            lane = self._lanes[level][bound.key] = Lane()
        items = lane.items
        if items and items[-1].due > request.due:
            lane.push(request)
        else:
            items.append(request)
        self.count += 1
        self.counts[level] += 1
        self.rows[level] += bound.rows

    def forget(self, request: Pending) -> None:
        """Account for a waiting request that just got its outcome without running."""
        self._left(request)
        self._dead += 1
        if self._dead > self.count + _SWEEP_SLACK:
            self._sweep()

    def delay(self, request: Pending) -> None:
        """Move a waiting request behind all others, in the order of its (new) ``due``."""
        self._lanes[request.level][request.bound.key].remove(request)
        self._left(request)
        request.priority = request.level + 1
        self.delayed_counts[request.level] += 1
        request.level = len(self._lanes) - 1
        self.push(request)

    def first(self, now: float) -> Place | None:
        """Return whose turn it is; None if nothing waits."""
        if not self.count:
            return None
        if self.counts[0] == self.count:  # the common case: no level but the first
            lanes = self._lanes[0]
            if len(lanes) == 1:
                for key, lane in lanes.items():
                    head = lane.items[0]
                    if head.state == WAITING:
                        return Place(0, key, head)
            return self._most_urgent(0)
        for level, count in enumerate(self.counts):
            if count:
                return self.turn(now) or self._most_urgent(level)
        raise AssertionError("the levels' counts don't add up")

    def turn(self, now: float) -> Place | None:
        """Return the starving lane whose turn it is, before all others; None if there is none."""
        if self._passed < _TURNS:
            return None
        highest = next((level for level, count in enumerate(self.counts) if count), 0)
        return self._starving(highest, now)

    def places(self) -> Iterator[Place]:
        """Yield every lane that has anybody, in the order of their turns. Take from none meanwhile."""
        for level, count in enumerate(self.counts):
            if count:
                yield from sorted(self._heads(level), key=_urgency)

    def view(self, place: Place, max_rows: int) -> QueueView:
        """Describe the next batch of a lane, of at most ``max_rows`` rows."""
        count = rows = 0
        oldest = limit = NEVER
        for request in self._joining(place):
            total = rows + request.bound.rows
            if count and total > max_rows:
                return QueueView(count, rows, True, oldest, limit, place.level)
            rows = total
            count += 1
            oldest = min(oldest, request.enqueued_at)
            limit = min(limit, request.limit)
            if rows >= max_rows:
                break
        return QueueView(count, rows, rows >= max_rows, oldest, limit, place.level)

    def take(self, place: Place, max_rows: int, shared_rows: int | None = None) -> list[Pending]:
        """Remove and return a lane's next batch: up to ``max_rows`` rows, at least one request.

        Room that is left, up to ``shared_rows`` in all, goes to the same lane of the levels below,
        or above a starving one, and then to lanes whose requests may be padded to this one's
        length.
        """
        level = place.level
        is_turn = self._passed >= _TURNS and any(self.counts[:level])
        lane = self._lanes[level].get(place.key)
        if lane is None:
            return []  # since the place was chosen, the last of them have been ended and swept
        taken = lane.take(max(1, max_rows // 2) if is_turn else max_rows)
        if self.count == len(taken) == self.counts[0]:
            self.count = self.counts[0] = self.rows[0] = self._passed = 0
            return taken  # everything, and of one kind: the common case
        if self.count > len(taken):
            rows = sum([request.bound.rows for request in taken])
            self._fill(taken, place, rows, max_rows if shared_rows is None else shared_rows)
        for request in taken:
            self._left(request)
        if not self.count or is_turn:
            self._passed = 0
        elif any(self.counts[level + 1 :]):
            self._passed += 1
        return taken

    def has_more(self, place: Place) -> bool:
        """Whether somebody waits in the lane that a batch was taken from."""
        if not self.count:
            return False
        lane = self._lanes[place.level].get(place.key)
        return lane is not None and lane.head() is not None

    def rows_before(self, level: int, due: float = NEVER) -> int:
        """Return the rows that leave before a new request of this level that is due then."""
        lanes = self._lanes[level].values()
        if all(lane.is_last(due) for lane in lanes):
            return self.rows[0] if level == 0 else sum(self.rows[: level + 1])
        return sum(self.rows[:level]) + sum(lane.rows_before(due) for lane in lanes)

    def line(self, place: Place, max_rows: int) -> list[Pending]:
        """Return those of a lane's own level who come first, up to ``max_rows`` of them."""
        return list(islice(self._lanes[place.level][place.key], max_rows))

    def waiting(self) -> list[Pending]:
        """Return everything that waits, level by level, lane by lane."""
        return [request for lanes in self._lanes for lane in lanes.values() for request in lane]

    def _left(self, request: Pending) -> None:
        self.count -= 1
        self.counts[request.level] -= 1
        self.rows[request.level] -= request.bound.rows
        if request.level == len(self._lanes) - 1:
            self.delayed_counts[request.priority - 1] -= 1

    def _most_urgent(self, level: int) -> Place:
        lanes = self._lanes[level]
        if len(lanes) == 1:
            for key, lane in lanes.items():
                head = lane.head()
                assert head is not None, "a level with requests has a head"
                return Place(level, key, head)
        return min(self._heads(level), key=_urgency)

    def _heads(self, level: int) -> list[Place]:
        lanes = self._lanes[level]
        places: list[Place] = []
        for key, lane in list(lanes.items()):
            head = lane.head()
            if head is None:
                del lanes[key]
            else:
                places.append(Place(level, key, head))
        return places

    def _starving(self, above: int, now: float) -> Place | None:
        """Return the head that has waited longest below a level, if that is too long."""
        longest: Place | None = None
        for level in range(above + 1, len(self._lanes)):
            for place in self._heads(level) if self.counts[level] else ():
                waited = now - place.head.enqueued_at
                if waited >= STARVING_S and (
                    longest is None or place.head.enqueued_at < longest.head.enqueued_at
                ):
                    longest = place
        return longest

    def _joining(self, place: Place) -> Iterator[Pending]:
        """Yield those who would make up a lane's batch, in order."""
        yield from self._lanes[place.level][place.key]
        for lane in self._companions(place):
            yield from lane

    def _fill(self, taken: list[Pending], place: Place, rows: int, max_rows: int) -> None:
        for lane in self._companions(place):
            while rows < max_rows and (head := lane.head()) and rows + head.bound.rows <= max_rows:
                more = lane.take(max_rows - rows)
                rows += sum([request.bound.rows for request in more])
                taken += more

    def _companions(self, place: Place) -> Iterator[Lane]:
        """Yield the other lanes that may join a lane's batch: its own kind first, then least waste."""
        for level, lanes in enumerate(self._lanes):
            if self.counts[level] and level != place.level and (lane := lanes.get(place.key)):
                yield lane
        for level, lanes in enumerate(self._lanes):
            if self.counts[level] and len(lanes) > 1:
                for key in fill_order(place.key, lanes):
                    yield lanes[key]

    def _sweep(self) -> None:
        for lanes in self._lanes:
            for key, lane in list(lanes.items()):
                lane.sweep()
                if lane.head() is None:
                    del lanes[key]
        self._dead = 0

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        lanes = sum(len(each) for each in self._lanes)
        return f"<WaitingQueue {self.count} waiting in {lanes} lanes>"


def _urgency(place: Place) -> float:
    return place.head.due
