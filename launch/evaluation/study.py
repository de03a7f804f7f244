"""What does an evaluation leave behind?

Pure. One `Study` is the whole document of `kvrelay eval`: what was asked, of which systems, what each run measured and
what follows from the runs. It is written as JSON; the requests themselves are lines of `RequestResult` in one file per
run, and everything here can be computed again from them.
"""

from typing import Annotated

from msgspec import Meta, Struct, field

from launch.evaluation.arrivals import Arrivals
from launch.evaluation.compare import Comparison
from launch.evaluation.compatible import Keys
from launch.evaluation.definitions import DEFINITIONS
from launch.evaluation.goodput import Found, Search
from launch.evaluation.load import Dispatch, Saturation
from launch.evaluation.measures import Measures
from launch.evaluation.regions import Region
from launch.evaluation.slo import Attainments, Slo

FORMAT = 1
"""Of the document; a reader refuses what it does not know."""

OF_OTHER_LOADS = frozenset({"regions", "calibration"})
"""Purposes whose runs have lengths or SLOs of their own."""

_RunId = Annotated[str, Meta(min_length=1, max_length=64, pattern="^[A-Za-z0-9._-]+$")]


class System(Struct, frozen=True, kw_only=True):
    """One server that was measured."""

    name: str  # "1P1D", "aggregated 2", or the URL; unique in a study
    description: str  # model, dtype, cores, pools: one line for people
    workers: int | None = None  # None: a URL does not say


class Run(Struct, frozen=True, kw_only=True):
    """One load on one system."""

    run_id: _RunId  # its requests are in `{run_id}.jsonl` beside the document
    system: str  # `System.name`
    purpose: str  # "single", "sweep", "goodput", "compare", "regions", "calibration": who asked for it
    arrivals: Arrivals  # as asked
    rate_per_s: float | None  # planned; None in a closed loop
    requests: int
    seconds: float  # from the first planned arrival to the last end
    stopped: bool = False  # by hand: what it cut off is nobody's fault
    prompt_tokens: float | None = None  # mean per request, as planned; None: text
    output_tokens: float = 0.0  # mean per request, as planned
    measures: Measures  # of the window without warm-up and cool-down
    attainments: Attainments | None  # None: no SLO was given
    dispatch: Dispatch | None  # None in a closed loop, where nothing was planned
    saturation: Saturation | None  # likewise
    vllm: Keys  # under the keys of `vllm bench serve`


class Goodput(Struct, frozen=True, kw_only=True):
    """The search on one system."""

    system: str
    search: Search
    found: Found
    run_ids: tuple[_RunId, ...]  # its probes, in the order in which they ran


class SloScale(Struct, frozen=True, kw_only=True):
    """Attainment of one run where every bound of the SLO is so many times what was asked."""

    run_id: _RunId
    system: str
    points: tuple[tuple[float, Attainments], ...]


class Duel(Struct, frozen=True, kw_only=True):
    """Two systems in alternating runs of the same requests."""

    a: str  # `System.name`
    b: str
    run_ids: tuple[_RunId, ...]  # in the order in which they ran
    comparisons: dict[str, Comparison]  # by the name of the measure
    verdict: str  # in one sentence, with its uncertainty
    rate_per_s: float | None = None  # None in a closed loop


class RegionMap(Struct, frozen=True, kw_only=True):
    """For which prompts, answers and SLOs each of two systems wins."""

    a: str
    b: str
    regions: tuple[Region, ...]
    how: str  # how load and SLOs were chosen for each shape: a caption


class Study(Struct, frozen=True, kw_only=True):
    title: str
    command: str  # as typed
    created: str  # date and time, UTC, ISO 8601
    version: str  # of kvrelay
    commit: str | None  # None: not run from a checkout; "-dirty" where it had changes
    environment: dict[str, str]  # machine, cores, load before, versions
    workload: tuple[str, ...]  # in words: lengths, source, seed, scale, what was cut
    slo: Slo | None
    systems: tuple[System, ...]
    runs: tuple[Run, ...]
    goodputs: tuple[Goodput, ...] = ()
    slo_scales: tuple[SloScale, ...] = ()
    duels: tuple[Duel, ...] = ()
    region_map: RegionMap | None = None
    definitions: dict[str, str] = field(default_factory=DEFINITIONS.copy)
    format: int = FORMAT
