"""What was asked of an evaluation, and can it be done?

All flags in one value, and what can be known to be wrong with them before a cell takes seconds to start.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from launch.cell_flags import CellFlags
from launch.evaluation.flags import CampaignFlags, LoadFlags, SloFlags, WorkloadFlags, not_below_0
from launch.evaluation.sources import Source
from launch.evaluation.systems import SystemSpec, parse_system
from launch.rundir import is_running


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

    @property
    def fights(self) -> bool:
        """Whether two systems are compared at one load: with other campaigns only where a load is named for it."""
        return self.campaign.compare is not None and (self.load.names_a_load or not self.campaign.chooses_rates)

    @property
    def only_regions(self) -> bool:
        """Whether nothing is run but shapes, which have lengths, arrivals and SLOs of their own."""
        others = self.campaign.sweep is not None or self.campaign.goodput or self.fights
        return self.campaign.regions is not None and not others

    def words(self, source: Source) -> tuple[str, ...]:
        """On the requests, for the report."""
        if self.only_regions:
            return (f"lengths of each shape, synthetic, seed {self.workload.seed}",)
        return source.words()


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
    """
    Raises:
        ValueError: and why.
        OSError: a file cannot be read.
    """
    workload, load, campaign = asked.workload, asked.load, asked.campaign
    slo = asked.slo.slo()
    workload.check()
    load.check(trace=workload.is_trace)
    campaign.check()
    not_below_0("--warm-up", asked.warm_up_s)
    not_below_0("--cool-down", asked.cool_down_s)
    not_below_0("--grace", asked.grace_s)
    not_below_0("--priming", asked.priming)
    if campaign.chooses_rates and not asked.fights and load.names_a_load:
        raise ValueError(
            "--sweep, --goodput and --regions choose their rates: leave --rate and --concurrency out, or add --compare"
            " for runs at that load"
        )
    if (campaign.goodput or campaign.factors()) and slo is None:
        raise ValueError("--goodput and --slo-scale need an SLO, such as --slo-ttft-ms 500 --slo-tpot-ms 50")
    if asked.only_regions and (workload.reads_a_file or load.trace_clock is not None or campaign.factors()):
        raise ValueError(
            "--regions chooses lengths, arrivals and SLOs: leave --azure, --mooncake, --prompts, --trace-clock and"
            " --slo-scale out, or add what they are for, such as --sweep"
        )
    if asked.fights or not campaign.chooses_rates:
        count(asked, replace(workload, fit=None).source(None))


def count(asked: Asked, source: Source) -> int:
    """Requests of a single run, or of each run where two systems fight: every pair needs new ones.

    Raises:
        ValueError: none, or more than the source has.
    """
    runs = asked.campaign.duel_pairs if asked.fights else 1
    return asked.load.count(source, asked.load.arrivals(source), asked.workload.seed, runs)
