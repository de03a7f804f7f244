"""How does a step run on CUDA?

`CudaForward` makes the tables of a step, brings them to the device and runs the model: a decode step by replaying a
graph (`engine.cuda.graphs`), anything else eagerly. `verified_forward` chooses what serves a model: its fused forward
where there is one and it computes the same, else transformers' own with attention by kernels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from engine import attention, support
from engine.batch import Window
from engine.cuda.attention import NAME, PagedStep, Workspaces, paged_attention
from engine.cuda.fuse import fuse
from engine.cuda.graphs import Capture, CaptureFailed, DecodeGraphs, cuda_capture
from engine.cuda.tables import DeviceTables, Outline, Stage, packed_bytes, tabulate
from engine.forward import ForwardFactory, feed_back
from engine.layout import KvLayout
from engine.pool import KvPool
from engine.port import Row
from runtime import logs

Compute = Callable[[PagedStep], Tensor]
"""A model's arithmetic: writes the keys and values of a step; [samples, vocab]."""

_PROMPT_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""torch's attention for chunks that begin their prompt: not cuDNN's, which torch prefers on Hopper. It builds a plan
for each new length, tens of milliseconds on the host, and prompts have all lengths."""

_STAGE_BYTES = 1 << 20  # grows with the first step that needs more
_TRIAL_SIZES = (4,)  # the trial decodes two rows: half of its graph is padding

_log = logs.get("engine")


@dataclass(frozen=True, slots=True)
class GraphSettings:
    """
    Attributes:
        sizes: the buckets, ascending; none: no graphs.
        max_model_len: tokens of the longest sequence.
        capture: how a step is recorded.
    """

    sizes: tuple[int, ...]
    max_model_len: int
    capture: Callable[[], Capture] = cuda_capture


class CudaForward:
    """The `ModelForward` of a CUDA device."""

    def __init__(self, compute: Compute, windows: Sequence[Window], settings: GraphSettings, pool: KvPool) -> None:
        """Captures all graphs. `windows` has one entry per layer."""
        self._compute = compute
        self._pool = pool
        self._layers = attention.paged_layers(pool, windows)
        self._device = self._layers[0].cache.key_pages.device
        self._workspaces = Workspaces(self._device, _multiprocessors(self._device))
        self._stage = Stage(self._device, _STAGE_BYTES)
        self._graphs = self._captured(settings) if settings.sizes else None

    def logits(self, rows: Sequence[Row], chosen: Tensor | None = None) -> Tensor:
        plan = tabulate(rows, self._pool.layout)
        bucket = self._graphs.bucket(plan) if self._graphs else None
        if self._graphs is None or bucket is None:
            if packed_bytes(plan.tables) > self._stage.capacity:
                self._stage = Stage(self._device, 2 * packed_bytes(plan.tables))
            tables = self._stage.upload(plan.tables)
            self._prepare(tables, chosen)
            return self._run(plan.outline, tables)
        tables = self._graphs.load(plan, bucket)
        self._prepare(tables, chosen)
        logits = self._graphs.replay(bucket)
        samples = tables.sampled.shape[0]
        return logits[:samples] if samples == plan.outline.decodes else logits.index_select(0, tables.sampled)

    def _prepare(self, tables: DeviceTables, chosen: Tensor | None) -> None:
        feed_back(tables.input_ids, tables.followers, tables.followed, chosen)
        if tables.fresh_pages.shape[0]:
            self._pool.clear(tables.fresh_pages)

    def _run(self, outline: Outline, tables: DeviceTables) -> Tensor:
        step = PagedStep(outline, tables, self._layers, self._workspaces)
        if not outline.opening:
            return self._compute(step)
        with sdpa_kernel(_PROMPT_ATTENTION):
            return self._compute(step)

    def _captured(self, settings: GraphSettings) -> DecodeGraphs | None:
        made = DecodeGraphs(settings.sizes, self._pool.layout, settings.max_model_len, self._device)
        try:
            made.capture(self._run, settings.capture())
        except CaptureFailed as error:
            _log.warning("decode steps are launched kernel by kernel, which is slower; no CUDA graph of %s", error)
            return None
        return made


def verified_forward(
    model: PreTrainedModel, layout: KvLayout, windows: Sequence[Window], settings: GraphSettings
) -> ForwardFactory:
    """What serves `model`, after a comparison with the model's own forward; `windows` has one entry per layer.

    Raises:
        engine.support.UnsupportedModel: it computes something else.
    """
    trial = replace(settings, sizes=_TRIAL_SIZES if settings.sizes else ())

    def plain(settings: GraphSettings, pool: KvPool) -> CudaForward:
        attention.install(model, NAME, paged_attention)
        return CudaForward(partial(_transformers_logits, model), windows, settings, pool)

    support.verify(model, layout, partial(plain, trial))
    fused = fuse(model)
    if fused is None:
        return partial(plain, settings)
    torch.cuda.empty_cache()  # of the weights that were joined; other workers may share the device
    try:
        support.verify(model, layout, partial(CudaForward, fused, windows, trial))
    except support.UnsupportedModel as error:
        _log.warning("%s is served without fused kernels, which is slower: %s", type(model).__name__, error)
        return partial(plain, settings)
    return partial(CudaForward, fused, windows, settings)


def _transformers_logits(model: PreTrainedModel, step: PagedStep) -> Tensor:
    tables = step.tables
    return attention.logits(model, tables.input_ids[None], tables.positions[None], tables.sampled, step)


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
