"""Play seeds, one after another or over several processes; shrink and print what fails."""

from __future__ import annotations

import gc
import multiprocessing.pool
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import structlog

from tests.simulation import caught as kept
from tests.simulation.caught import CAUGHT_BY
from tests.simulation.check import Violation
from tests.simulation.loop import Stuck
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.outages import world_of
from tests.simulation.schedule import Schedule
from tests.simulation.world import World

CHUNK: Final = 40
"""Seeds that a worker takes at a time."""
FATAL: Final = 50
NEARBY: Final = 300
"""Seeds that are tried where the one that is known to catch a mutant does not any more: a change made another world."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one schedule."""

    seed: int
    violation: str | None
    digest: int = 0
    seconds: float = 0.0
    """Virtual ones."""
    trace: Sequence[str] = ()

    @property
    def rule(self) -> str:
        """The rule that is broken, without the particulars."""
        return (self.violation or "").partition(":")[0]


def prepare() -> None:
    """Make this process ready for many seeds: no log, and the collector only between seeds."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(FATAL), cache_logger_on_first_use=True, processors=[]
    )
    gc.collect()
    gc.freeze()
    gc.disable()


def play(schedule: Schedule, mutant: Mutant | None = None, verbose: bool = False, kind: type[World] = World) -> Outcome:
    """Play one schedule with the shipped code, or with a mutant of it."""
    random.seed(schedule.seed)
    world = kind(schedule, mutant.edit_script if mutant is not None else None, verbose)
    violation = None
    try:
        world.run()
    except (Violation, Stuck) as error:
        violation = str(error)
    return Outcome(schedule.seed, violation, world.digest, world.loop.now, world.trace)


def play_all(seeds: Iterable[int], mutant: Mutant | None = None) -> Iterator[Outcome]:
    """Play seeds one after another. What is left of a world is collected while it is still in the processor's cache."""
    for seed in seeds:
        yield play(world_of(seed), mutant)
        gc.collect()


# --- many seeds ---


def _work(chunk: tuple[int, int]) -> list[Outcome]:
    return list(play_all(range(*chunk)))


def run(first: int, count: int, jobs: int, report: Callable[[Outcome], None]) -> tuple[int, float]:
    """Play `count` seeds from `first` on over `jobs` processes; the number of failures and the seconds it took."""
    began = time.perf_counter()
    chunks = [(at, min(at + CHUNK, first + count)) for at in range(first, first + count, CHUNK)]
    failures = 0
    for outcomes in _over(jobs, chunks):
        for outcome in outcomes:
            if outcome.violation is not None:
                failures += 1
                report(outcome)
    return failures, time.perf_counter() - began


def _over(jobs: int, chunks: list[tuple[int, int]]) -> Iterator[list[Outcome]]:
    if jobs <= 1:
        prepare()
        yield from map(_work, chunks)
        return
    with _workers(jobs) as pool:
        yield from pool.imap(_work, chunks)


def _workers(jobs: int) -> multiprocessing.pool.Pool:
    """Processes that begin as this one is: none has to load and prepare anything."""
    prepare()
    return multiprocessing.get_context("fork").Pool(jobs)


# --- shrinking ---


def shrink(schedule: Schedule, mutant: Mutant | None = None) -> Schedule:
    """The same failure with as few steps as dropping them one by one gets; simpler circumstances where they do."""
    rule = _play_safely(schedule, mutant).rule
    for simpler in ({"lost_frames": 0.0}, {"spike": 0.0}, {"event_bytes": 16_384}, {"tail_bytes": 262_144}):
        candidate = replace(schedule, **simpler)
        if _play_safely(candidate, mutant).rule == rule:
            schedule = candidate
    dropped = True
    while dropped:
        dropped = False
        for index in reversed(range(len(schedule.steps))):
            candidate = schedule.without(index)
            if _play_safely(candidate, mutant).rule == rule:
                schedule, dropped = candidate, True
    return schedule


def _play_safely(schedule: Schedule, mutant: Mutant | None) -> Outcome:
    if mutant is None:
        return play(schedule)
    with mutant.applied():
        return play(schedule, mutant)


# --- mutants ---


@dataclass(frozen=True, slots=True)
class Hunt:
    """How one mutant fared."""

    name: str
    caught_by: int | None
    """Seed whose world shows that it is broken, and does not with the shipped code."""
    after: int
    """Seeds tried."""
    violation: str

    @property
    def told(self) -> str:
        """A line about it; of one that was not caught, what to do."""
        if self.caught_by is not None:
            return f"{self.name:28} caught by seed {self.caught_by}: {self.violation[:120]}"
        return (
            f"{self.name:28} SURVIVES {self.after} seeds and the one that caught it; one that does is found, and kept"
            f" in tests/simulation/caught.py, by: python -m tests.simulation --keep --mutant {self.name}"
        )


def hunt(name: str, most: int) -> Hunt:
    """Play seeds with a mutant until one catches it."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    tried = 0
    while tried < most:
        with mutant.applied():
            caught = next((o for o in play_all(range(tried, most), mutant) if o.violation is not None), None)
        gc.collect()
        if caught is None:
            break
        tried = caught.seed + 1
        if play(world_of(caught.seed)).violation is None:
            return Hunt(name, caught.seed, tried, caught.violation or "")
    return Hunt(name, None, most, "")


def caught_at(mutant: Mutant, seed: int) -> str | None:
    """The violation by which one seed shows that a mutant is broken; None if it does not, or fails without it, too."""
    with mutant.applied():
        violation = play(world_of(seed), mutant).violation
    return violation if play(world_of(seed)).violation is None else None


def recall(name: str, seeds: Mapping[str, int] = CAUGHT_BY, most: int = NEARBY) -> Hunt:
    """Play the seed known to catch a mutant, with it and without it; if it does not any more, the first ones."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    seed = seeds.get(name)
    violation = None if seed is None else caught_at(mutant, seed)
    return hunt(name, most) if violation is None else Hunt(name, seed, 1, violation)


def keep(found: Iterable[Hunt]) -> None:
    """Write down which seeds catch mutants, for `recall`."""
    path = Path(kept.__file__)
    seeds = CAUGHT_BY | {one.name: one.caught_by for one in found if one.caught_by is not None}
    lines = [f'    "{mutant.name}": {seeds[mutant.name]},\n' for mutant in MUTANTS if mutant.name in seeds]
    head, begins, _ = path.read_text().partition("CAUGHT_BY: Final = {\n")
    path.write_text(head + begins + "".join(lines) + "}\n")


def _hunt(work: tuple[str, int]) -> Hunt:
    return hunt(*work)


def hunt_all(names: Sequence[str], most: int, jobs: int) -> Iterator[Hunt]:
    """Hunt mutants over `jobs` processes."""
    yield from _each(_hunt, [(name, most) for name in names], jobs)


def recall_all(names: Sequence[str], jobs: int) -> Iterator[Hunt]:
    """Play what is known of mutants over `jobs` processes."""
    yield from _each(recall, names, jobs)


def _each(look: Callable[[T], Hunt], work: Sequence[T], jobs: int) -> Iterator[Hunt]:
    with _workers(jobs) as pool:
        yield from pool.imap(look, work)
