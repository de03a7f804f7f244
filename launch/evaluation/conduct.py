"""What happens in an evaluation, from its flags to its files?

The systems come up, the runs that were asked for are made one after the other, and everything that was measured is
written, also when it is stopped in the middle.
"""

import asyncio
import contextlib
import re
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace
from rich.console import Console

from launch.cell import available_cores
from launch.client import ServerUnreachable
from launch.display import CellDisplay
from launch.errors import ModelUnavailable
from launch.evaluation.asked import Asked, check, count, systems_of
from launch.evaluation.bench import Bench, NotServed, Rules, Stopped, SystemLost
from launch.evaluation.campaigns.duel import DuelOptions, duel
from launch.evaluation.campaigns.search import GoodputOptions, goodput, told_by
from launch.evaluation.campaigns.session import Session
from launch.evaluation.campaigns.shapes import RegionOptions, Shape, map_regions
from launch.evaluation.campaigns.sweep import SweepOptions, sweep
from launch.evaluation.environment import commit, environment, own_version
from launch.evaluation.http_target import ServerUnusable
from launch.evaluation.lengths import Fixed
from launch.evaluation.live import LiveDisplay
from launch.evaluation.opening import Means, SystemMissing, Systems
from launch.evaluation.recording import Recording
from launch.evaluation.sources import Source, Synthetic
from launch.evaluation.study import Study
from launch.evaluation.systems import OwnCell, SystemSpec
from launch.rundir import CellInUse
from launch.supervisor import CellFailed
from runtime.clock import SystemClock

Failures = (
    CellFailed,
    CellInUse,
    ModelUnavailable,
    NotServed,
    OSError,
    ServerUnreachable,
    ServerUnusable,
    SystemLost,
    SystemMissing,
    ValueError,
)
"""What the person at the terminal can put right."""


class Interrupted(Exception):
    """The person at the terminal did not want to wait for anything; what was measured is kept."""


@dataclass(frozen=True)
class Outputs:
    study: Study
    recording: Recording
    failure: str | None  # why it ended early; None: it did not, or by hand


async def evaluate(asked: Asked, base: Path, cache_dir: Path) -> Outputs:
    """
    Raises:
        Failures: nothing was measured.
        asyncio.CancelledError: stopped before anything was measured.
        Interrupted: stopped twice; what was measured is written.
    """
    check(asked)
    specs = systems_of(asked, base)
    created = datetime.now(UTC)
    directory = asked.output or Path("eval-results") / f"{created:%Y-%m-%d-%H%M%S}"
    recording = Recording(directory, new=asked.output is None)
    try:
        return await _evaluate(asked, specs, recording, created, base, cache_dir)
    except asyncio.CancelledError:
        if not recording.has_study:
            raise
        raise Interrupted(f"interrupted; what was measured is in {directory}") from None


async def _evaluate(
    asked: Asked, specs: tuple[SystemSpec, ...], recording: Recording, created: datetime, base: Path, cache_dir: Path
) -> Outputs:
    console, clock = Console(stderr=True, emoji=False), SystemClock()
    facts, checkout = environment(len(available_cores())), commit()
    display = CellDisplay(console, verbose=asked.verbose)
    interrupts = _Interrupts()
    failure: str | None = None
    with interrupts.heard(), display:
        systems = Systems(specs, _means(asked, specs, display, base, cache_dir), one_at_a_time=asked.one_at_a_time)
        async with systems:
            opened = [await systems.use(name) for name in systems.names[: 1 if asked.one_at_a_time else None]]
            contexts = [one.context_tokens for one in opened if one.context_tokens is not None]
            source = asked.workload.source(min(contexts, default=None))
            words = asked.words(source)
            display.stop()

            def study() -> Study:
                """So far."""
                return Study(
                    title=asked.title or f"{' against '.join(systems.names)}: {words[0]}",
                    command=shlex.join(["kvrelay", *without_key(asked.command)]),
                    created=f"{created:%Y-%m-%dT%H:%M:%SZ}",
                    version=own_version(),
                    commit=checkout,
                    environment={"model": opened[0].model, **facts},
                    workload=(*words, *_rules_in_words(asked), *bench.all_notes()),
                    slo=asked.slo.slo(),
                    systems=bench.measured,
                    runs=tuple(bench.runs),
                    goodputs=tuple(session.goodputs),
                    slo_scales=tuple(bench.slo_scales),
                    duels=tuple(session.duels),
                    region_map=session.region_map,
                )

            bench = Bench(
                systems=systems,
                recording=recording,
                rules=_rules(asked),
                ids=(max(one.ids[0] for one in opened), min(one.ids[1] for one in opened)),
                clock=clock,
                display=LiveDisplay(console, clock, asked.slo.slo(), quiet=asked.quiet),
                stop=interrupts.stop,
                saved=lambda: recording.study(study()),
            )
            session = Session(run_load=bench.run_load, progress=bench.announce, at_rate=asked.load.at_rate(source))
            interrupts.measuring = True
            try:
                await _measure(asked, bench, session, source)
            except Stopped:
                pass
            except Failures as error:
                if not bench.runs:
                    raise
                failure = f"ended early: {error}"
                bench.notes.append(failure)
            finally:
                if bench.runs:
                    bench.saved()
    if not bench.runs:
        raise asyncio.CancelledError
    return Outputs(study(), recording, failure)


async def _measure(asked: Asked, bench: Bench, session: Session, source: Source) -> None:
    """The campaigns that were asked for, or one run."""
    campaign, slo, names = asked.campaign, asked.slo.slo(), bench.systems.names
    left_out_s = asked.warm_up_s + asked.cool_down_s
    if campaign.sweep is not None:
        size = asked.load.size(60.0, 100, left_out_s)
        await sweep(session, source, names, SweepOptions(rates_per_s=campaign.rates(), size=size))
    if asked.fights:
        arrivals, requests = asked.load.arrivals(source), count(asked, source)
        options = DuelOptions(arrivals=arrivals, requests=requests, slo=slo, pairs=campaign.duel_pairs)
        await duel(session, source, names[0], names[1], options)
    if campaign.goodput and slo is not None:
        size = asked.load.size(60.0, 100, left_out_s)
        told = told_by(session.runs)  # what is known already need not be searched for
        search = campaign.search()
        search = replace(search, probes=search.probes + max(map(len, told.values()), default=0))
        await goodput(session, source, names, GoodputOptions(slo=slo, size=size, search=search), told)
    if campaign.regions is not None:
        session.at_rate = asked.load.random  # a trace has no times for these shapes
        size = asked.load.size(30.0, 40, left_out_s)
        shapes = RegionOptions(shapes=campaign.shapes(), slo=slo, size=size, pairs=campaign.region_pairs)
        await map_regions(session, lambda shape: _shaped(shape, asked), names[0], names[1], shapes)
    if campaign.chooses_rates or asked.fights:
        return
    arrivals, requests = asked.load.arrivals(source), count(asked, source)
    await bench.run_load(names[0], session.fresh(source, names, arrivals, requests), arrivals, "single")


def _shaped(shape: Shape, asked: Asked) -> Source:
    return Synthetic(prompts=Fixed(shape.prompt_tokens), outputs=Fixed(shape.output_tokens), seed=asked.workload.seed)


def _means(asked: Asked, specs: tuple[SystemSpec, ...], display: CellDisplay, base: Path, cache_dir: Path) -> Means:
    own = any(isinstance(spec, OwnCell) for spec in specs)
    return Means(
        cell=asked.cell,
        model_dir=asked.cell.model_dir(cache_dir, display.pull_progress) if own else None,
        base=base,
        clock=SystemClock(),
        observer=display.observer(),
        api_key=asked.api_key,
        url_model=asked.url_model,
        tokenizer=asked.tokenizer,
        text_only=asked.workload.prompts is not None,
    )


def without_key(command: tuple[str, ...]) -> list[str]:
    """A document that is handed around must not hold the key that was typed."""
    shown = [re.sub(r"^(--api-key=).*", r"\1...", word, flags=re.DOTALL) for word in command]
    return ["..." if before == "--api-key" else word for before, word in zip(["", *command], shown, strict=False)]


def _rules(asked: Asked) -> Rules:
    return Rules(
        seed=asked.workload.seed,
        slo=asked.slo.slo(),
        slo_factors=asked.campaign.factors(),
        warm_up_s=asked.warm_up_s,
        cool_down_s=asked.cool_down_s,
        grace_s=asked.grace_s,
        priming=asked.priming,
    )


def _rules_in_words(asked: Asked) -> tuple[str, ...]:
    words = []
    if asked.warm_up_s or asked.cool_down_s:
        words.append(f"the first {asked.warm_up_s:g} s and the last {asked.cool_down_s:g} s of arrivals are left out")
    if asked.priming:
        words.append(f"{asked.priming} requests before the first run of a fresh system are in no result")
    return tuple(words)


class _Interrupts:
    """Ctrl-C ends the run that goes on, and what was measured is written; before there is one, or again, everything."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.measuring = False

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def on_signal() -> None:
            if self.measuring and not self.stop.is_set():
                self.stop.set()
            elif task is not None:
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
