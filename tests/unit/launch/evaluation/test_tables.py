"""Is a study told on a terminal as it is, whatever is in its names?"""

import io

import pytest
from msgspec.structs import replace
from rich.console import Console

from launch.evaluation.goodput import REMARKS, Ending, Found, Search
from launch.evaluation.slo import Slo
from launch.evaluation.study import Goodput
from launch.evaluation.tables import findings, print_run
from tests.support.studies import AGGREGATED, SPLIT, Builder, region_map


def test_names_are_no_markup() -> None:
    builder = Builder(slo=Slo(ttft_s=0.4), requests=20)
    run = replace(builder.run(SPLIT, 2.0, 0, "single"), system="[type=missing][/v1/models]")
    console = Console(file=io.StringIO(), width=200)
    print_run(console, run, builder.slo)
    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue()
    assert "[type=missing][/v1/models]: 20 requests" in told
    assert "attainment (TTFT 400 ms): whole SLO " in told


@pytest.mark.parametrize(
    ("ending", "rate", "told"),
    [
        (Ending.FOUND, 2.0, "goodput of 1P1D: 2 (1.50 to ?) requests/s"),
        (Ending.INTERRUPTED, 2.0, "goodput of 1P1D: 2 (1.50 to ?) requests/s; the search was interrupted"),
        (Ending.BELOW_LOWEST, None, "goodput of 1P1D: none; not even the lowest rate"),
    ],
)
def test_goodput_has_its_interval_and_how_the_search_ended(ending: Ending, rate: float | None, told: str) -> None:
    found = Found(ending=ending, goodput_per_s=rate, low_per_s=1.5, high_per_s=None, rates=())
    goodput = Goodput(system="1P1D", search=Search(), found=found, run_ids=())
    (line,) = findings(Builder().study(goodputs=(goodput,)))
    assert line.startswith(told)
    assert line.endswith(REMARKS[ending])


def test_regions_say_who_a_and_b_are() -> None:
    first, *regions = findings(Builder().study(region_map=region_map(SPLIT, AGGREGATED)))
    assert first == "regions: A = 1P1D, B = aggregated 2"
    assert len(regions) == 18
