"""Which flags of the command line describe a cell, whoever starts it?

`kvrelay up` and `kvrelay eval` take the same ones; how many workers there are and who may reach them is each command's
own business.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from coordinator.config import HttpConfig, RequestLimits
from launch import models
from launch.config import CellOptions, Dtype, LoadFormat, Workers
from launch.progress import OnProgress


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CellFlags:
    model: Annotated[
        str, Parameter(help="`smollm2-135m-instruct` (fetched once), a hub id, or a local Hugging Face directory.")
    ] = models.DEFAULT_MODEL
    local_prefill_tokens: Annotated[
        int, Parameter(help="Decode workers compute prompts up to this length themselves while they owe few tokens.")
    ] = 0
    device: Annotated[
        str, Parameter(help="`cpu`, `cuda:0`, or one per worker, comma-separated: prefill workers first.")
    ] = "cpu"
    dtype: Annotated[
        Dtype, Parameter(help="Weights and KV cache; `auto` is float32 on a CPU and the model's own type on CUDA.")
    ] = "auto"
    load_format: Annotated[
        LoadFormat, Parameter(help="`dummy` fills the architecture with seeded random weights, for benchmarks.")
    ] = "auto"
    prefill_kv_tokens: Annotated[int, Parameter(help="Tokens that the KV pool of a prefill worker holds.")] = 8192
    decode_kv_tokens: Annotated[int, Parameter(help="Tokens that the KV pool of a decode worker holds.")] = 16384
    page_tokens: Annotated[int, Parameter(help="Tokens per KV page.")] = 16
    max_model_len: Annotated[int | None, Parameter(help="Context limit; the model's own if not given.")] = None
    chunk_tokens: Annotated[
        int | None, Parameter(help="Token budget of one prefill step; 256 on a CPU and 2048 on CUDA if not given.")
    ] = None
    mixed_chunk_tokens: Annotated[
        int | None,
        Parameter(
            help="Prompt tokens in one step of a decode worker in which somebody decodes; "
            "128 on a CPU and 512 on CUDA if not given."
        ),
    ] = None
    max_batch: Annotated[int, Parameter(help="Sequences in one decode step.")] = 64
    mock: Annotated[
        bool, Parameter(help="Same processes and transfers with an engine whose answers can be computed by hand.")
    ] = False

    def model_dir(self, cache_dir: Path, on_progress: OnProgress) -> Path | None:
        """None for the mock engine. May fetch the model.

        Raises:
            launch.errors.ModelUnavailable: there is no such model, or it cannot be downloaded now.
        """
        return None if self.mock else models.resolve(self.model, cache_dir, on_progress)

    def options(
        self,
        directory: Path | None,
        workers: Workers,
        *,
        seed: int = 0,
        requests: RequestLimits = RequestLimits(),  # noqa: B008 - frozen
        http: HttpConfig | None = None,
    ) -> CellOptions:
        """
        Raises:
            ValueError: as many devices as that cannot be given to these workers.
        """
        return CellOptions(
            model_dir=None if directory is None else str(directory),
            model_name="mock" if directory is None else self.model,
            prefill=workers.prefill,
            decode=workers.decode,
            aggregated=workers.aggregated,
            local_prefill_tokens=self.local_prefill_tokens,
            devices=_devices(self.device, workers.count),
            dtype=self.dtype,
            load_format=self.load_format,
            seed=seed,
            page_tokens=self.page_tokens,
            prefill_kv_tokens=self.prefill_kv_tokens,
            decode_kv_tokens=self.decode_kv_tokens,
            max_model_len=self.max_model_len,
            chunk_tokens=self.chunk_tokens,
            mixed_chunk_tokens=self.mixed_chunk_tokens,
            max_batch=self.max_batch,
            requests=requests,
            http=http,
        )


def _devices(text: str, workers: int) -> tuple[str, ...]:
    devices = tuple("cuda:0" if part == "cuda" else part for part in text.split(","))
    if len(devices) not in (1, workers):
        raise ValueError(f"--device names {len(devices)} devices for {workers} workers: give one for all, or one each")
    return devices
