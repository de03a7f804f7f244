"""What is asked of an evaluation where a test says nothing else?"""

from pathlib import Path
from typing import Any

from launch.cell_flags import CellFlags
from launch.evaluation.asked import Asked
from launch.evaluation.flags import CampaignFlags, LoadFlags, SloFlags, WorkloadFlags


def asked(system: str, output: Path, **changes: Any) -> Asked:
    choices: dict[str, Any] = {
        "workload": WorkloadFlags(),
        "load": LoadFlags(),
        "slo": SloFlags(slo_ttft_ms=60_000.0),
        "campaign": CampaignFlags(),
        "cell": CellFlags(mock=True),
        "warm_up_s": 0.0,
        "cool_down_s": 0.0,
        "grace_s": 60.0,
        "priming": 2,
        "one_at_a_time": False,
        "command": ("eval", system),
        "api_key": None,
        "url_model": None,
        "tokenizer": None,
        "title": None,
        "quiet": True,
        "verbose": False,
    }
    return Asked(system=system, output=output, **(choices | changes))
