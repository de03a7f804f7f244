"""Is what cannot be done refused before anything starts?"""

import math
from pathlib import Path
from typing import Any

import pytest

from launch.evaluation.asked import check, count
from launch.evaluation.flags import CampaignFlags, LoadFlags, SloFlags, WorkloadFlags
from tests.support.asking import asked

SWEEP = CampaignFlags(sweep="1,2")
REGIONS = CampaignFlags(regions="8x4", compare="aggregated:1")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"priming": -1}, "--priming"),
        ({"grace_s": math.nan}, "--grace"),
        ({"warm_up_s": -1.0}, "--warm-up"),
        ({"cool_down_s": math.inf}, "--cool-down"),
        ({"workload": WorkloadFlags(trace_start=-5)}, "--trace-start"),
        ({"workload": WorkloadFlags(trace_requests=0)}, "--trace-requests"),
        ({"workload": WorkloadFlags(fit=1.0), "campaign": SWEEP}, "of a trace"),
        ({"workload": WorkloadFlags(mooncake=Path("t"), fit=math.nan), "campaign": SWEEP}, "--fit"),
        ({"campaign": CampaignFlags(compare="aggregated:1", pairs=0)}, "--pairs"),
        ({"campaign": CampaignFlags(compare="aggregated:1", pairs=1)}, "--pairs"),
        ({"campaign": CampaignFlags(goodput=True, goodput_from=math.nan)}, "--goodput-from"),
        ({"campaign": CampaignFlags(slo_scale="1"), "slo": SloFlags()}, "need an SLO"),
        ({"campaign": SWEEP, "load": LoadFlags(constant=True, burstiness=0.5)}, "one load"),
        ({"campaign": SWEEP, "load": LoadFlags(trace_clock=1.0)}, "needs a trace"),
        ({"campaign": SWEEP, "load": LoadFlags(burstiness=-1.0)}, "--burstiness"),
        ({"campaign": SWEEP, "load": LoadFlags(duration=-1.0)}, "--duration"),
        ({"campaign": SWEEP, "load": LoadFlags(rate=1.0)}, "choose their rates"),
        ({"campaign": REGIONS, "workload": WorkloadFlags(mooncake=Path("t"))}, "--regions chooses"),
        ({"campaign": CampaignFlags(regions="8x4", compare="1P2D", slo_scale="1,2")}, "--regions chooses"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check(asked("1P1D", tmp_path / "out", **changes))


@pytest.mark.parametrize("campaign", [CampaignFlags(), SWEEP, REGIONS, CampaignFlags(goodput=True, slo_scale="1,2")])
def test_what_can_be_done_is_not(tmp_path: Path, campaign: CampaignFlags) -> None:
    check(asked("1P1D", tmp_path / "out", campaign=campaign))


def test_a_file_lasts_for_all_pairs_of_a_fight(tmp_path: Path) -> None:
    """Each pair gets new prompts, so a fight takes as many times as many as a single run."""
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "output_tokens": 2}\n' * 150)
    flags = WorkloadFlags(prompts=file)
    fight = CampaignFlags(compare="aggregated:1")
    source = flags.source(None)
    assert count(asked("1P1D", tmp_path, workload=flags), source) == 100
    assert count(asked("1P1D", tmp_path, workload=flags, campaign=fight), source) == 15
    with pytest.raises(ValueError, match="10 x 20 different requests are asked for, and the file has 150"):
        check(asked("1P1D", tmp_path, workload=flags, campaign=fight, load=LoadFlags(requests=20)))


def test_a_study_of_regions_alone_names_no_lengths_but_theirs(tmp_path: Path) -> None:
    workload = WorkloadFlags(prompt_tokens="999", seed=3)
    source = workload.source(None)
    alone = asked("1P1D", tmp_path, workload=workload, campaign=REGIONS)
    assert alone.words(source) == ("lengths of each shape, synthetic, seed 3",)
    both = asked("1P1D", tmp_path, workload=workload, campaign=CampaignFlags(regions="8x4", sweep="1", compare="1P2D"))
    assert both.words(source) == source.words()


def test_runs_of_campaigns_last_longer_by_what_is_left_out_of_them() -> None:
    assert LoadFlags().size(60.0, 100, left_out_s=15.0).requests(2.0) == 120 + 30
    assert LoadFlags(requests=10).size(60.0, 100, left_out_s=15.0).requests(2.0) == 10 + 30
