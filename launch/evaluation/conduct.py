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

from rich.console import Console

from launch.cell import available_cores
from launch.cell_flags import CellFlags
from launch.display import CellDisplay
from launch.evaluation.bench import Bench, Rules, Stopped
from launch.evaluation.campaigns.duel import DuelOptions, duel
from launch.evaluation.campaigns.search import GoodputOptions, goodput
from launch.evaluation.campaigns.session import Session
from launch.evaluation.campaigns.shapes import RegionOptions, Shape, map_regions
from launch.evaluation.campaigns.sweep import SweepOptions, slo_scale, sweep
from launch.evaluation.environment import commit, environment, own_version
from launch.evaluation.flags import CampaignFlags, LoadFlags, SloFlags, WorkloadFlags
from launch.evaluation.lengths import Fixed
from launch.evaluation.live import LiveDisplay
from launch.evaluation.opening import Means, Systems
from launch.evaluation.recording import Recording
from launch.evaluation.results import RequestResult
from launch.evaluation.sources import NoMoreRequests, Source, Synthetic
from launch.evaluation.study import Study
from launch.evaluation.systems import OwnCell, SystemSpec, parse_system
from launch.rundir import is_running
from runtime.clock import SystemClock


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Everything that was said on the command line."""

    system: str | None
    workload: WorkloadFlags
    load: LoadFlags
    slo: SloFlags
    campaign: CampaignFlags
    cell: CellFlags
    warm_up_s: float
    cool_down_s: float
    grace_s: float
    priming: int
    one_at_a_time: bool
    command: tuple[str, ...]  # as typed
    api_key: str | None
    url_model: str | None
    tokenizer: Path | None
    output: Path | None
    title: str | None
    quiet: bool
    verbose: bool


@dataclass(frozen=True)
class Outputs:
    study: Study
    results: dict[str, list[RequestResult]]  # by run id
    recording: Recording


def systems_of(asked: Asked, base: Path) -> tuple[SystemSpec, ...]:
    """
    Raises:
        ValueError: a name is none; or regions without a second system.
    """
    text = asked.system
    if text is None:
        text = "cell:default" if is_running(base, "default") else "1P1D"
    specs = [parse_system(text)]
    if asked.campaign.compare is not None:
        specs.append(parse_system(asked.campaign.compare))
    elif asked.campaign.regions is not None:
        raise ValueError("--regions needs two systems: name the second with --compare")
    return tuple(specs)


def check(asked: Asked) -> None:
    """What can be known to be wrong before a cell takes seconds to start.

    Raises:
        ValueError: and why.
    """
    campaign, slo = asked.campaign, asked.slo.slo()
    campaign.rates()
    campaign.shapes()
    if campaign.chooses_rates and not fights(asked) and asked.load.names_a_load:
        raise ValueError(
            "--sweep, --goodput and --regions choose their rates: leave --rate and --concurrency out, or add --compare"
            " for runs at that load"
        )
    if (campaign.goodput or campaign.factors()) and slo is None:
        raise ValueError("--goodput and --slo-scale need an SLO, such as --slo-ttft-ms 500 --slo-tpot-ms 50")
    source = asked.workload.source(None) if asked.workload.fit is None else None
    if source is not None and (fights(asked) or not campaign.chooses_rates):
        asked.load.count(source, asked.load.arrivals(source), asked.workload.seed)


def fights(asked: Asked) -> bool:
    """Whether two systems are compared at one load: with other campaigns only where a load is named for it."""
    return asked.campaign.compare is not None and (asked.load.names_a_load or not asked.campaign.chooses_rates)


async def evaluate(asked: Asked, base: Path, cache_dir: Path) -> Outputs:
    """
    Raises:
        ValueError, OSError and what opening a system raises: nothing was measured.
        asyncio.CancelledError: stopped before anything was measured, or twice.
    """
    check(asked)
    specs = systems_of(asked, base)
    console, clock = Console(stderr=True), SystemClock()
    created = datetime.now(UTC)
    recording = Recording(asked.output or Path("eval-results") / f"{created:%Y-%m-%d-%H%M%S}")
    facts = environment(len(available_cores()))
    display = CellDisplay(console, verbose=asked.verbose)
    interrupts = _Interrupts()
    study: Study | None = None
    with interrupts.heard(), display:
        systems = Systems(specs, _means(asked, specs, display, base, cache_dir), one_at_a_time=asked.one_at_a_time)
        async with systems:
            opened = [await systems.use(name) for name in systems.names[: 1 if asked.one_at_a_time else None]]
            contexts = [one.context_tokens for one in opened if one.context_tokens is not None]
            source = asked.workload.source(min(contexts, default=None))
            display.stop()
            bench = Bench(
                systems=systems,
                recording=recording,
                rules=_rules(asked),
                ids=(max(one.ids[0] for one in opened), min(one.ids[1] for one in opened)),
                clock=clock,
                display=LiveDisplay(console, clock, asked.slo.slo(), quiet=asked.quiet),
                stop=interrupts.stop,
            )
            session = Session(run_load=bench.run_load, progress=bench.announce, at_rate=asked.load.at_rate(source))
            interrupts.measuring = True
            try:
                await _measure(asked, bench, session, source)
            except Stopped:
                pass
            except NoMoreRequests as error:
                if not bench.runs:
                    raise
                bench.notes.append(f"ended early: {error}")
            finally:
                if bench.runs:
                    study = _study(asked, bench, session, source, {"model": opened[0].model, **facts}, created)
                    recording.study(study)
    if study is None:
        raise asyncio.CancelledError
    return Outputs(study, bench.results, recording)


def _study(
    asked: Asked, bench: Bench, session: Session, source: Source, facts: dict[str, str], created: datetime
) -> Study:
    return Study(
        title=asked.title or f"{' against '.join(bench.systems.names)}: {source.words()[0]}",
        command=shlex.join(["kvrelay", *without_key(asked.command)]),
        created=f"{created:%Y-%m-%dT%H:%M:%SZ}",
        version=own_version(),
        commit=commit(),
        environment=facts,
        workload=tuple(dict.fromkeys((*source.words(), *_rules_in_words(asked), *bench.notes))),
        slo=asked.slo.slo(),
        systems=tuple(bench.known.values()),
        runs=tuple(bench.runs),
        goodputs=tuple(session.goodputs),
        slo_scales=tuple(session.slo_scales),
        duels=tuple(session.duels),
        region_map=session.region_map,
    )


async def _measure(asked: Asked, bench: Bench, session: Session, source: Source) -> None:
    """The campaigns that were asked for, or one run."""
    campaign, slo, names = asked.campaign, asked.slo.slo(), bench.systems.names
    factors = campaign.factors()
    if campaign.sweep is not None:
        size = asked.load.size(60.0, 100)
        await sweep(
            session, source, names, SweepOptions(rates_per_s=campaign.rates(), size=size, slo=slo, slo_factors=factors)
        )
    if campaign.goodput and slo is not None:
        options = GoodputOptions(slo=slo, size=asked.load.size(60.0, 100), search=campaign.search())
        await goodput(session, source, names, options)
    if campaign.regions is not None:
        shapes = RegionOptions(
            shapes=campaign.shapes(), slo=slo, size=asked.load.size(30.0, 40), pairs=campaign.pairs or 6
        )
        await map_regions(session, lambda shape: _shaped(shape, asked), names[0], names[1], shapes)
    if campaign.chooses_rates and not fights(asked):
        return
    arrivals = asked.load.arrivals(source)
    count = asked.load.count(source, arrivals, asked.workload.seed)
    if fights(asked):
        pairs = DuelOptions(arrivals=arrivals, requests=count, slo=slo, pairs=campaign.pairs or 10)
        await duel(session, source, names[0], names[1], pairs)
        return
    workload = session.fresh(source, names, arrivals, count)
    run, results = await bench.run_load(names[0], workload, arrivals, "single")
    if factors and slo is not None:
        session.slo_scales.append(slo_scale(run, results, slo, factors))


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
