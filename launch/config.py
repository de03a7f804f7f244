"""What can be chosen when a cell is started?

One frozen Struct holds the user's choices; functions here turn it into the configuration of each process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from coordinator.config import CoordinatorConfig, HttpConfig, RequestLimits
from decode_worker.config import DecodeConfig
from engine.config import AnyEngineConfig, EngineConfig, FakeEngineConfig
from launch.placement import Placement
from launch.rundir import client_endpoint, launcher_endpoint, worker_endpoint
from prefill_worker.config import PrefillConfig

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
LoadFormat = Literal["auto", "dummy"]


class Workers(Struct, frozen=True, kw_only=True):
    """A cell has prefill and decode workers, or aggregated ones."""

    prefill: int
    decode: int
    aggregated: int = 0

    @property
    def count(self) -> int:
        return self.prefill + self.decode + self.aggregated


class CellOptions(Struct, frozen=True, kw_only=True):
    """The choices of `kvrelay up`."""

    model_dir: str | None  # None: the fake engine
    model_name: str
    prefill: int = 1
    decode: int = 1
    aggregated: int = 0  # workers that do both, instead of prefill and decode workers
    local_prefill_tokens: int = 0  # prompts up to this length are computed by their decode worker
    devices: tuple[str, ...] = ("cpu",)  # one for all workers, or one each: prefill workers first
    dtype: Dtype = "auto"
    load_format: LoadFormat = "auto"
    seed: int = 0
    page_tokens: int = 16
    prefill_kv_tokens: int = 8192
    decode_kv_tokens: int = 16384
    max_model_len: int | None = None
    chunk_tokens: int | None = None  # None: what suits the device
    mixed_chunk_tokens: int | None = None
    max_batch: int = 64
    fake_step_s: float = 0.0
    fake_token_s: float = 0.0
    fake_kv_bytes_per_token: int = 1024
    requests: RequestLimits = RequestLimits()
    worker_timeout_s: float = 4.0
    client_stall_s: float = 30.0
    http: HttpConfig | None = None
    log_level: str = "INFO"

    @property
    def prefill_workers(self) -> int:
        return 0 if self.aggregated else self.prefill

    @property
    def decode_workers(self) -> int:
        return self.aggregated or self.decode


def worker_ids(options: CellOptions) -> tuple[str, ...]:
    prefill = tuple(f"prefill-{i}" for i in range(options.prefill_workers))
    return prefill + tuple(f"decode-{i}" for i in range(options.decode_workers))


def coordinator_config(options: CellOptions, cell: Path, parent_pid: int) -> CoordinatorConfig:
    return CoordinatorConfig(
        run_dir=str(cell),
        parent_pid=parent_pid,
        client_endpoint=client_endpoint(cell),
        worker_endpoint=worker_endpoint(cell),
        launcher_endpoint=launcher_endpoint(cell),
        model=options.model_name,
        tokenizer_dir=options.model_dir,
        prefill_workers=options.prefill_workers,
        decode_workers=options.decode_workers,
        aggregated=bool(options.aggregated),
        local_prompt_tokens=options.local_prefill_tokens,
        http=options.http,
        requests=options.requests,
        worker_timeout_s=options.worker_timeout_s,
        client_stall_s=options.client_stall_s,
        log_level=options.log_level,
    )


def worker_configs(
    options: CellOptions, cell: Path, parent_pid: int, placement: Placement
) -> dict[str, PrefillConfig | DecodeConfig]:
    """The configuration of every worker by its id."""
    configs: dict[str, PrefillConfig | DecodeConfig] = {}
    endpoint = worker_endpoint(cell)
    for i, cores in enumerate(placement.prefill):
        device = _device(options.devices, i)
        configs[f"prefill-{i}"] = PrefillConfig(
            worker_id=f"prefill-{i}",
            coordinator=endpoint,
            run_dir=str(cell),
            parent_pid=parent_pid,
            cores=cores,
            engine=_engine(options, device, options.prefill_kv_tokens, cores, decodes=False),
            chunk_tokens=options.chunk_tokens or _chunks(device).alone,
            log_level=options.log_level,
        )
    for i, cores in enumerate(placement.decode):
        device = _device(options.devices, options.prefill_workers + i)
        configs[f"decode-{i}"] = DecodeConfig(
            worker_id=f"decode-{i}",
            coordinator=endpoint,
            run_dir=str(cell),
            parent_pid=parent_pid,
            cores=cores,
            engine=_engine(options, device, options.decode_kv_tokens, cores, decodes=True),
            max_batch=options.max_batch,
            chunk_tokens=options.chunk_tokens or _chunks(device).alone,
            mixed_chunk_tokens=options.mixed_chunk_tokens or _chunks(device).beside_streams,
            log_level=options.log_level,
        )
    return _with_neighbours(configs)


def _with_neighbours(
    configs: Mapping[str, PrefillConfig | DecodeConfig],
) -> dict[str, PrefillConfig | DecodeConfig]:
    """Each worker on a GPU is told of the pools that the others will make there (`engine.room`)."""
    engines = {
        name: config.engine
        for name, config in configs.items()
        if isinstance(config.engine, EngineConfig) and config.engine.device != "cpu"
    }
    told = dict(configs)
    for name, engine in engines.items():
        others = (other for key, other in engines.items() if key != name and other.device == engine.device)
        pages = tuple(other.pool_pages or 0 for other in others)
        told[name] = replace(configs[name], engine=replace(engine, neighbour_pages=pages))
    return told


@dataclass(frozen=True, slots=True)
class _Chunks:
    """Token budgets of one step: of prompts alone, and of prompts in a step in which somebody decodes."""

    alone: int
    beside_streams: int


def _chunks(device: str) -> _Chunks:
    """Enough to keep the device busy, and no more: what is in one step waits for all of it (docs/experiments.md has the
    CPU's numbers; those of CUDA have not been measured)."""
    return _Chunks(alone=2048, beside_streams=512) if device.startswith("cuda") else _Chunks(256, 128)


def _device(devices: Sequence[str], worker: int) -> str:
    return devices[0] if len(devices) == 1 else devices[worker]


def _engine(
    options: CellOptions, device: str, kv_tokens: int, cores: Sequence[int], *, decodes: bool
) -> AnyEngineConfig:
    pages = -(-kv_tokens // options.page_tokens)
    if options.model_dir is None:
        return FakeEngineConfig(
            page_tokens=options.page_tokens,
            pool_pages=pages,
            kv_bytes_per_token=options.fake_kv_bytes_per_token,
            max_model_len=options.max_model_len or 4096,
            step_s=options.fake_step_s,
            token_s=options.fake_token_s,
        )
    return EngineConfig(
        model=options.model_dir,
        load_format=options.load_format,
        dtype=options.dtype,
        device=device,
        page_tokens=options.page_tokens,
        pool_pages=pages,
        threads=len(cores),
        seed=options.seed,
        max_model_len=options.max_model_len,
        max_batch=options.max_batch,
        graphs=decodes,
    )
