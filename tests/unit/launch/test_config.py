"""Does each worker know who shares its GPU?"""

from pathlib import Path

import pytest

from engine.config import EngineConfig
from launch.config import CellOptions, worker_configs
from launch.placement import place


def neighbours(*devices: str, aggregated: int = 0) -> dict[str, tuple[int, ...]]:
    options = CellOptions(
        model_dir="model",
        model_name="model",
        prefill=1,
        decode=2,
        aggregated=aggregated,
        devices=devices,
        page_tokens=16,
        prefill_kv_tokens=160,
        decode_kv_tokens=321,
    )
    placement = place(range(4), options.prefill_workers, options.decode_workers)
    found = {}
    for name, config in worker_configs(options, Path(), 0, placement).items():
        assert isinstance(config.engine, EngineConfig)
        found[name] = config.engine.neighbour_pages
    return found


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (("cpu",), ((), (), ())),
        (("cuda:0",), ((21, 21), (10, 21), (10, 21))),
        (("cuda:0", "cuda:1", "cuda:1"), ((), (21,), (21,))),
        (("cuda:0", "cuda:0", "cpu"), ((21,), (10,), ())),
    ],
)
def test_the_pools_of_the_others_on_its_gpu(devices: tuple[str, ...], expected: tuple[tuple[int, ...], ...]) -> None:
    assert tuple(neighbours(*devices).values()) == expected


def test_aggregated_workers_share_as_well() -> None:
    assert neighbours("cuda:0", aggregated=2) == {"decode-0": (21,), "decode-1": (21,)}
