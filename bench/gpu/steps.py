"""How far from the floor are decode steps and prefills of one engine?

One process, one engine, no cell: `engine.forward` as a worker calls it. Pages are filled with random numbers first, and
each sequence has pages of its own, so no step reads out of a cache what it would read from memory. Floors:
`bench.gpu.floors`, over the rates of `bench.gpu.limits`.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.gpu import shapes
from bench.gpu.beside import OURS
from bench.gpu.floors import decode_bytes, prefill_flops, weight_bytes
from bench.gpu.parts import Settings, Tell
from bench.gpu.shapes import Shape
from bench.gpu.timing import busy_seconds, wall_seconds
from bench.one_process import first_token
from bench.rows import Row, summarise
from engine.config import EngineConfig
from engine.core import open_engine
from engine.port import EnginePort, SampleSpec
from engine.port import Row as EngineRow
from runtime.buffers import MemoryKind, Region
from runtime.params import SamplingParams
from transport.ucx import as_buffer

_PAGE_TOKENS = 16
_CHUNK_TOKENS = 2048  # of a prefill worker on CUDA
_ROWS = (1, 8, 32, 64, 128)
_CONTEXTS = (1024, 8192)
_PROMPTS = (2048, 4096, 8192)
_DIGESTED = (128, 512, 2048, 8192)
_SPARE_BYTES = 12 << 30  # beside weights and pool
_SLICE_BYTES = 1 << 30

_FLOOR_NOTE = "1 is the weights and the keys and values of every row, read once at the device's best memory rate"
_STEP_NOTE = "engine.forward until its tokens are on the host"
_AHEAD_NOTE = "from one step's tokens to the next one's, when each is begun before the one in front has ended"
_BUSY_NOTE = "kernels and copies alone, by torch's profiler: the step less the gaps between them"
_PREFILL_NOTE = "1 is the library's best product of large square matrices; chunks of a prefill worker's size"
_DIGEST_NOTE = "1 is one pass over the pages at the device's best memory rate; it ends with a copy to the host"


def run(settings: Settings, tell: Tell) -> None:
    device = torch.device(settings.device)
    shape = settings.shape
    contexts = _CONTEXTS if settings.on_gpu else (128,)
    prompts = _PROMPTS if settings.on_gpu else (64,)
    rows = _ROWS if settings.on_gpu else (1, 4)
    room = _room_tokens(shape, device)
    sizes = [(count, context) for context in contexts for count in rows]
    fitting = [(count, context) for count, context in sizes if count * context <= room]
    for count, context in sizes:
        if (count, context) not in fitting:
            tell(note=f"{count} rows of {context} tokens are left out: their KV cache does not fit beside the weights")
    tokens = max([count * context for count, context in fitting] + [max(prompts)])
    with TemporaryDirectory() as directory:
        model = shapes.write(shape, Path(directory))
        cfg = EngineConfig(
            model=str(model),
            load_format="dummy",
            dtype="bfloat16" if settings.on_gpu else "float32",
            device=settings.device,
            page_tokens=_PAGE_TOKENS,
            pool_pages=-(-tokens // _PAGE_TOKENS),
            max_batch=max(rows),
        )
        engine = open_engine(cfg, lambda stage, _: print(stage, flush=True))
    _fill(engine, device)
    for count, context in fitting:
        _decode(engine, settings, count, context, tell)
    for prompt in prompts:
        _prefill(engine, settings, prompt, tell)
    for digested in _DIGESTED:
        if digested <= tokens:
            _digest(engine, settings, digested, tell)
    for count, context in fitting:  # last: the profiler stays attached
        _busy(engine, settings, count, context, tell)


def _room_tokens(shape: Shape, device: torch.device) -> int:
    """How many tokens of KV cache fit beside the weights."""
    if device.type != "cuda":
        return 4096
    free, _ = torch.cuda.mem_get_info(device)
    embedding = shape.hidden * shape.vocab * shape.dtype_bytes
    return max(0, free - weight_bytes(shape) - embedding - _SPARE_BYTES) // shape.kv_token_bytes


def _decode(engine: EnginePort, settings: Settings, count: int, context: int, tell: Tell) -> None:
    step = _decode_step(engine, count, context)
    device, repetitions = torch.device(settings.device), 15 if settings.on_gpu else 3
    seconds = wall_seconds(lambda: engine.forward(step), device, repetitions, warm_up=5)
    ahead = _ahead_seconds(engine, step, repetitions)
    parameters: dict[str, str | int] = {"rows": count, "context": context}
    floor_s = _floor_s(settings, decode_bytes(settings.shape, count, context))
    tell(*_times("decode step", seconds, _STEP_NOTE, floor_s, _FLOOR_NOTE, parameters))
    tell(*_times("decode step, one ahead", ahead, _AHEAD_NOTE, floor_s, _FLOOR_NOTE, parameters))
    tell(_row(OURS, [count / s for s in seconds], "tokens/s", _STEP_NOTE, parameters))


def _busy(engine: EnginePort, settings: Settings, count: int, context: int, tell: Tell) -> None:
    step = _decode_step(engine, count, context)
    busy_s = busy_seconds(lambda: engine.forward(step), torch.device(settings.device), 5)
    if busy_s is not None:
        parameters: dict[str, str | int] = {"rows": count, "context": context}
        floor_s = _floor_s(settings, decode_bytes(settings.shape, count, context))
        tell(*_times("device time of a step", [busy_s], _BUSY_NOTE, floor_s, _BUSY_NOTE, parameters))


def _ahead_seconds(engine: EnginePort, step: Sequence[EngineRow], repetitions: int) -> list[float]:
    """Of each step, as a worker on a GPU has them: begun while the one before is under way, with its tokens."""
    following = [replace(row, follows=place) for place, row in enumerate(step)]
    engine.begin(step).results()
    under_way = engine.begin(following)
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        before, under_way = under_way, engine.begin(following)
        before.results()
        seconds.append(time.perf_counter() - start)
    under_way.results()
    return seconds


def _decode_step(engine: EnginePort, count: int, context: int) -> list[EngineRow]:
    """Rows as a worker has them, their pages in a tuple."""
    pages = engine.layout.pages_for(context)
    spec = SampleSpec(SamplingParams(temperature=0.0), 0, (), ())
    return [EngineRow((7 + i,), context - 1, tuple(range(i * pages, (i + 1) * pages)), spec) for i in range(count)]


def _prefill(engine: EnginePort, settings: Settings, tokens: int, tell: Tell) -> None:
    device = torch.device(settings.device)
    prompt = random.Random(tokens).choices(range(settings.shape.vocab), k=tokens)
    seconds = wall_seconds(
        lambda: first_token(engine, prompt, _CHUNK_TOKENS), device, 5 if settings.on_gpu else 2, warm_up=2
    )
    flops = prefill_flops(settings.shape, tokens)
    parameters: dict[str, str | int] = {"prompt tokens": tokens, "chunk": min(tokens, _CHUNK_TOKENS)}
    if settings.rates is not None:
        of_best = [flops / s / settings.rates.matrix for s in seconds]
        tell(_row("prefill / matrix rate", of_best, "ratio", _PREFILL_NOTE, parameters))
    tell(_row("prefill rate", [flops / s for s in seconds], "TFLOP/s", _PREFILL_NOTE, parameters, 1e-12))
    tell(_row("prefill", seconds, "ms", _STEP_NOTE, parameters, 1e3))


def _digest(engine: EnginePort, settings: Settings, tokens: int, tell: Tell) -> None:
    pages = range(engine.layout.pages_for(tokens))
    nbytes = len(pages) * engine.layout.page_bytes
    seconds = wall_seconds(lambda: engine.digest(pages), torch.device(settings.device), 9)
    parameters: dict[str, str | int] = {"tokens": tokens, "MiB": nbytes >> 20}
    floor_s = _floor_s(settings, nbytes)
    tell(*_times("digest", seconds, _DIGEST_NOTE, floor_s, _DIGEST_NOTE, parameters))


def _floor_s(settings: Settings, nbytes: float) -> float | None:
    """To read so many bytes once; None where the rates of the device are not known."""
    return None if settings.rates is None else nbytes / settings.rates.memory


def _times(
    quantity: str,
    seconds: Sequence[float],
    note: str,
    floor_s: float | None,
    floor_note: str,
    parameters: dict[str, str | int],
) -> list[Row]:
    """As multiples of their floor, where that is known, and in milliseconds."""
    of_floor = [s / floor_s for s in seconds] if floor_s is not None else []
    ratios = [_row(f"{quantity} / floor", of_floor, "ratio", floor_note, parameters)] if of_floor else []
    return [*ratios, _row(quantity, seconds, "ms", note, parameters, 1e3)]


def _row(
    quantity: str,
    values: Sequence[float],
    unit: str,
    note: str,
    parameters: dict[str, str | int],
    scale: float = 1.0,
) -> Row:
    return summarise("steps", quantity, values, unit=unit, limited_by=note, parameters=parameters, scale=scale)


def _fill(engine: EnginePort, device: torch.device) -> None:
    """Random keys and values in every page, where a transfer would put them."""
    dtype: torch.dtype = getattr(torch, engine.layout.dtype)
    for region in engine.regions(range(engine.total_pages)):
        for start in range(0, region.nbytes, _SLICE_BYTES):
            part = region.slice(start, min(_SLICE_BYTES, region.nbytes - start))
            _memory(part, device).view(dtype).normal_()


def _memory(region: Region, device: torch.device) -> torch.Tensor:
    """The bytes of a region as a tensor, without a copy."""
    buffer: Any = as_buffer(region)
    if region.kind is MemoryKind.CUDA:
        return torch.as_tensor(buffer, device=device)
    return torch.frombuffer(buffer, dtype=torch.uint8)
