"""Does a bench keep every run that it made, and end where there is nothing to measure any more?"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from launch.evaluation.arrivals import Constant
from launch.evaluation.bench import Bench, Rules, Stopped, SystemLost
from launch.evaluation.lengths import Fixed
from launch.evaluation.live import LiveDisplay
from launch.evaluation.opening import Opened, Systems
from launch.evaluation.recording import Recording
from launch.evaluation.results import Outcome
from launch.evaluation.slo import Slo
from launch.evaluation.study import System
from launch.evaluation.targets import Reply
from launch.evaluation.workload import synthetic
from tests.support.handoff import VirtualClock
from tests.support.scripted_target import ScriptedTarget, in_virtual_time

PLAN = Constant(1.0)
End = Callable[[int, Reply, float], None]


class Ready(Systems):
    """One server that needs no start."""

    def __init__(self, target: ScriptedTarget) -> None:
        system = System(name="A", description="scripted")
        self._ready = Opened(
            target=target, system=system, model="m", ids=(100, 200), context_tokens=None, notes=("is odd",)
        )

    async def use(self, name: str) -> Opened:
        assert name == "A"
        return self._ready


@dataclass
class Scene:
    """A bench whose server answers two requests of priming, then as `end` says, each after 2.5 s."""

    directory: Path
    end: End = lambda _number, reply, now: reply.end(now)
    rules: Rules = field(default_factory=lambda: Rules(seed=0))
    saved: list[int] = field(default_factory=list)  # runs in each state of the study that was written
    first: int = 0

    def __post_init__(self) -> None:
        clock = VirtualClock()
        self.bench = Bench(
            systems=Ready(ScriptedTarget(clock, ttft_s=lambda _: 2.5, end=self.end)),
            recording=Recording(self.directory),
            rules=self.rules,
            ids=(100, 200),
            clock=clock,
            display=LiveDisplay(Console(quiet=True), clock, None, quiet=True),
            stop=asyncio.Event(),
            saved=lambda: self.saved.append(len(self.bench.runs)),
        )
        self.clock = clock

    def run(self, *purposes: str, count: int = 2) -> None:
        async def runs() -> None:
            for purpose in purposes:
                workload = synthetic(Fixed(8), Fixed(2), PLAN, count, seed=0, first=self.first)
                self.first += count
                await self.bench.run_load("A", workload, PLAN, purpose)

        in_virtual_time(self.clock, runs())


def test_a_server_that_is_gone_ends_the_study_and_its_last_run_is_kept(tmp_path: Path) -> None:
    def end(number: int, reply: Reply, now: float) -> None:
        reply.end(now, "connection: refused" if number >= 5 else None)

    scene = Scene(tmp_path, end)
    with pytest.raises(SystemLost, match="A is lost: connection: refused"):
        scene.run("sweep", "sweep", "sweep", "sweep")
    outcomes = [run.measures.outcomes for run in scene.bench.runs]
    assert [counts[Outcome.COMPLETED] for counts in outcomes] == [2, 1, 0], "one answer is enough to go on"
    assert scene.saved == [1, 2, 3], "the study is written after each run"
    assert len(list(tmp_path.glob("*.jsonl"))) == 3


def test_errors_of_the_server_itself_are_measured(tmp_path: Path) -> None:
    scene = Scene(tmp_path, lambda number, reply, now: reply.end(now, "internal: no" if number > 1 else None))
    scene.run("sweep", "sweep")
    assert [run.measures.outcomes[Outcome.FAILED] for run in scene.bench.runs] == [2, 2]


def test_a_run_that_is_stopped_says_so_and_counts_who_was_under_way(tmp_path: Path) -> None:
    def end(number: int, reply: Reply, now: float) -> None:
        reply.end(now)
        if number == 2:
            scene.bench.stop.set()

    scene = Scene(tmp_path, end)
    with pytest.raises(Stopped):
        scene.run("single", count=10)
    (run,) = scene.bench.runs
    assert run.stopped
    assert "001-A-single: stopped by hand after 3 of 10 requests: 2 under way are cut off" in scene.bench.notes[0]


def test_a_single_error_comes_out_of_the_tasks_as_itself(tmp_path: Path) -> None:
    def end(number: int, reply: Reply, now: float) -> None:
        if number == 1:
            raise ValueError("odd")
        reply.end(now)

    with pytest.raises(ValueError, match="odd"):
        Scene(tmp_path, end).run("single", count=1)


def test_each_run_is_judged_by_other_slos_but_those_that_have_their_own(tmp_path: Path) -> None:
    scene = Scene(tmp_path, rules=Rules(seed=0, slo=Slo(ttft_s=2.0), slo_factors=(1.0, 2.0)))
    scene.run("compare", "regions", "goodput")
    assert [scale.run_id for scale in scene.bench.slo_scales] == ["001-A-compare", "003-A-goodput"]
    assert [attained.every.met for _, attained in scene.bench.slo_scales[0].points] == [0, 2]
    assert scene.bench.all_notes() == ("A: is odd",), "once, and with the name of the server"
