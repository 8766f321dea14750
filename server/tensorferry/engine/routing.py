"""From what a request names (model, version, label) to the versions that may answer it.

The catalogue builds the table anew at every change, so that a request costs one look-up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tensorferry.engine.live import LiveModel, ModelState
from tensorferry.rollout.split import Split
from tensorferry.rollout.state import Rollout

__all__ = ["Route", "Routes", "Splits", "routes_of"]


class Route(NamedTuple):
    """Where requests of one form go: to ``arms``, one of which ``split`` chooses; None if there is one.

    ``live`` is the arm that stands for the model where one is meant (metadata): stable.
    """

    live: LiveModel
    split: Split | None
    arms: tuple[LiveModel, ...]

    @property
    def shares(self) -> dict[int, float]:
        """The part of such requests that each version gets; together 1."""
        shares = (1.0,) if self.split is None else self.split.shares
        return {live.spec.version: share for live, share in zip(self.arms, shares, strict=True)}

    def choose(self, key: bytes) -> LiveModel:
        """Return the version that answers the request with this key: always the same; b"" is no key."""
        if self.split is None:
            return self.live
        return self.arms[self.split.choose(key) if key else self.split.choose_any()]


#: (model, version as written in the request, label) -> where its requests go.
Routes = dict[tuple[str, str, str], Route]


class Splits:
    """The divisions that are in use, by model.

    One is kept while its shares are the same, whatever else changes: requests without a key are dealt
    out in a sequence, which would begin anew.
    """

    def __init__(self) -> None:
        self._splits: dict[str, tuple[bytes, tuple[float, ...], Split]] = {}

    def of(self, name: str, salt: bytes, shares: tuple[float, ...]) -> Split:
        """Return the division of a model's requests by these shares, which add up to 1."""
        known = self._splits.get(name)
        if known is None or known[:2] != (salt, shares):
            known = self._splits[name] = (salt, shares, Split(salt, shares))
        return known[2]


def routes_of(name: str, versions: Mapping[int, LiveModel], rollout: Rollout, splits: Splits) -> Routes:
    """Return every route to one model's ready versions."""
    ready = {number: live for number, live in versions.items() if live.state is ModelState.READY}
    routes: Routes = {(name, str(number), ""): _only(live) for number, live in ready.items()}
    for label, number in rollout.labels.items():
        if number in ready:
            routes[name, "", label] = _only(ready[number])
    default = _default(name, ready, rollout, splits)
    if default is not None:
        routes[name, "", ""] = default
    return routes


def _only(live: LiveModel) -> Route:
    return Route(live, None, (live,))


def _default(name: str, ready: Mapping[int, LiveModel], rollout: Rollout, splits: Splits) -> Route | None:
    """Return the route of requests that name neither version nor label; None if nobody may answer them.

    Where the rollout says who answers, nobody else does: the highest version may be one that was
    never rolled out. Nor does a canary take over from a stable that isn't there: its share is what it
    has been judged fit for, and there is nothing to judge it by.
    """
    if not rollout.arms:
        # A shadow never answers, not even as the highest version.
        answering = [number for number in ready if number != rollout.shadow_version]
        return _only(ready[max(answering)]) if answering else None
    arms = [(ready[number], share) for number, share in rollout.arms if number in ready]
    if not arms or (rollout.running is not None and rollout.running.stable_version not in ready):
        return None
    if len(arms) == 1:
        return _only(arms[0][0])
    total = sum(share for _, share in arms)
    split = splits.of(name, _salt(name, rollout), tuple(share / total for _, share in arms))
    return Route(ready.get(rollout.stable, arms[-1][0]), split, tuple(live for live, _ in arms))


def _salt(name: str, rollout: Rollout) -> bytes:
    """Return what tells this division from every other: who is in one's smaller arm isn't in all."""
    if rollout.canary is not None and rollout.canary.is_running:
        return f"{name}/{rollout.canary.version}".encode()
    return "/".join([name, *(share.target for share in rollout.split)]).encode()
