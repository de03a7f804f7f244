"""How do rows become tokens?

`open_engine` loads a model, refuses what it cannot serve exactly, and makes the pool; `TorchEngine` is the real
`EnginePort`. Both run on the worker's engine thread (`engine.thread`). This is where inference mode is entered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from engine import room, support
from engine.config import EngineConfig
from engine.forward import ForwardFactory, GatheredForward, ModelForward
from engine.grammar import GrammarCompiler, UnusableTokenizer
from engine.layout import KvLayout
from engine.loading import Progress, load, model_class, quiet_transformers, read_config
from engine.pool import KvPool, UnusableMemory
from engine.port import (
    EndedStep,
    GrammarError,
    Matcher,
    NoMatcher,
    PendingStep,
    Row,
    RowFailed,
    RowResult,
    SampleSpec,
    TokenMask,
)
from engine.sampling import Choice, choose
from runtime.buffers import Region
from runtime.params import SamplingParams

_WARM_UP_CHUNKS = {"cpu": (64,), "cuda": (80, 80, 3)}
"""Tokens. On CUDA kernels are compiled: for a chunk that begins a prompt, for a long and for a short one that go on."""


class TorchEngine:
    """A model, its forward over one pool of pages, and a sampler."""

    def __init__(
        self,
        model: PreTrainedModel,
        pool: KvPool,
        forward: ModelForward,
        model_name: str,
        max_model_len: int,
    ) -> None:
        """`forward` runs `model` and keeps its keys and values in `pool`."""
        self.layout = pool.layout
        self.total_pages = pool.total_pages
        self.model_name = model_name
        self.max_model_len = max_model_len
        self.vocab_size: int = model.config.get_text_config(decoder=True).vocab_size
        self.eos_token_ids = _eos_token_ids(model)
        self.runs_ahead = model.device.type == "cuda"
        self._pool = pool
        self._forward = forward
        self._chosen = torch.empty(0, dtype=torch.int64, device=model.device)  # in the last step, where rows follow it
        self._grammars: GrammarCompiler | str = "this engine was opened without a tokenizer"  # or why there is none

    def open_grammars(self, tokenizer_json: Path) -> None:
        """Serve requests with a grammar, if llguidance can work with this tokenizer."""
        if not tokenizer_json.is_file():
            self._grammars = "the model has no tokenizer.json"
            return
        try:
            self._grammars = GrammarCompiler(tokenizer_json, self.vocab_size, self.eos_token_ids)
        except UnusableTokenizer as error:
            self._grammars = str(error)

    def matcher(self, grammar: str) -> Matcher:
        if isinstance(self._grammars, str):
            return NoMatcher(self._grammars)
        return self._grammars.matcher(grammar)

    @torch.inference_mode()
    def begin(self, rows: Sequence[Row]) -> PendingStep:
        """See `EnginePort`. On CUDA the host waits for the device only where a row asks for top-p, once.

        Raises:
            ValueError: a row does not fit its pages, or follows what is not there: a mistake of the caller.
        """
        if not rows:
            return EndedStep([])
        _refuse_strays(rows, self._chosen.shape[0])
        logits = self._forward.logits(rows, self._chosen)
        specs = [row.sample for row in rows if row.sample]
        masks, failed = _masks(specs)  # while a device still computes the logits
        choice = choose(logits, specs, self.eos_token_ids, masks)
        self._chosen = choice.token_ids
        return _BegunStep([row.sample is not None for row in rows], choice.to_host(), failed, self._pool.mark())

    def forward(self, rows: Sequence[Row]) -> list[RowResult]:
        return self.begin(rows).results()

    def digest(self, pages: Sequence[int]) -> bytes:
        return self._pool.digest(pages)

    def regions(self, pages: Sequence[int]) -> tuple[Region, ...]:
        return self._pool.regions(pages)

    def memcpy_gigabytes_per_s(self) -> float:
        return self._pool.memcpy_gigabytes_per_s()


@dataclass(frozen=True, slots=True)
class _BegunStep:
    """A `PendingStep` whose tokens are on their way to the host.

    Attributes:
        samples: by row, whether it has one.
        choice: in host memory, good once `ended` is reached.
        failed: by sample.
        ended: None: it has.
    """

    samples: Sequence[bool]
    choice: Choice
    failed: Mapping[int, RowFailed]
    ended: torch.cuda.Event | None

    def results(self) -> list[RowResult]:
        if self.ended is not None:
            self.ended.synchronize()
        results = iter([self.failed.get(place, token) for place, token in enumerate(self.choice.tokens())])
        return [next(results) if has_sample else None for has_sample in self.samples]


def make_context_current(device: str) -> None:
    """Give the calling thread the CUDA context of `device`, where its kernels, streams and events will be."""
    torch.cuda.set_device(torch.device(device))


def open_engine(cfg: EngineConfig, on_progress: Progress) -> TorchEngine:
    """Load, check, allocate, warm up.

    Raises:
        LoadError: the model cannot be loaded.
        UnsupportedModel: the engine would not serve it exactly.
        UnusableMemory: the pool's memory could not be moved.
        engine.room.NoRoom: the GPU has no room for the pools of the workers that share it.
    """
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    device = torch.device(cfg.device)
    if device.type == "cuda":
        make_context_current(cfg.device)  # each thread has a current device, and begins with cuda:0
    with quiet_transformers():
        on_progress("reading the configuration", None)
        config = read_config(cfg.model)
        support.refuse_architecture(config, model_class(config))
        max_model_len = support.max_model_len(config, cfg.max_model_len)
        model = load(cfg.model, cfg.dtype, device, cfg.load_format, cfg.seed, on_progress)
        on_progress("checking paged attention against the model's own", None)
        with torch.inference_mode():
            geometry = support.probe(model)
            layout = _layout(cfg, model, geometry)
            make_forward = _verified_forward(cfg, model, layout, geometry, max_model_len)
        on_progress("allocating pages", None)
        pages = _total_pages(cfg, layout)
        room.check(model, pages * layout.page_bytes, [n * layout.page_bytes for n in cfg.neighbour_pages], device)
        pool = KvPool(layout, pages, device)
        if device.type == "cuda" and cfg.graphs:
            on_progress("capturing CUDA graphs", None)
        with torch.inference_mode():
            forward = make_forward(pool)
        engine = TorchEngine(model, pool, forward, _model_name(cfg), max_model_len)
        on_progress("reading the tokenizer", None)
        engine.open_grammars(Path(cfg.model) / "tokenizer.json")
        on_progress("warming up", None)
        _warm_up(engine, _WARM_UP_CHUNKS[device.type])
    return engine


def _verified_forward(
    cfg: EngineConfig, model: PreTrainedModel, layout: KvLayout, geometry: support.Geometry, max_model_len: int
) -> ForwardFactory:
    """What serves on this device, after a comparison with the model's own forward.

    Raises:
        UnsupportedModel: it computes something else.
    """
    if model.device.type == "cpu":
        gathered = partial(GatheredForward, model, geometry.windows)
        support.verify(model, layout, gathered)
        return gathered
    from engine.cuda import forward, graphs  # noqa: PLC0415 - a CPU has no use for triton

    sizes = graphs.buckets(cfg.max_batch) if cfg.graphs else ()
    return forward.verified_forward(model, layout, geometry.windows, forward.GraphSettings(sizes, max_model_len))


def _refuse_strays(rows: Sequence[Row], samples: int) -> None:
    """
    Raises:
        ValueError: a row follows a sample that the step before did not have, or cannot be sampled without knowing it.
    """
    for row in rows:
        if row.follows is not None:
            if not 0 <= row.follows < samples:
                raise ValueError(f"a row follows sample {row.follows} of a step that had {samples}")
            if row.sample is not None and row.sample.params.reads_output:
                raise ValueError("a row that reads its output follows a token that nobody has read")


def _masks(specs: Sequence[SampleSpec]) -> tuple[dict[int, TokenMask], dict[int, RowFailed]]:
    """The masks of the rows with a grammar, and the rows that have come to no good end with theirs."""
    masks: dict[int, TokenMask] = {}
    failed: dict[int, RowFailed] = {}
    for place, spec in enumerate(specs):
        if spec.matcher is not None:
            try:
                masks[place] = spec.matcher.allowed(spec.output)
            except GrammarError as error:
                failed[place] = RowFailed(str(error))
    return masks, failed


def _layout(cfg: EngineConfig, model: PreTrainedModel, geometry: support.Geometry) -> KvLayout:
    weights = f" (random weights, seed {cfg.seed})" if cfg.load_format == "dummy" else ""
    return KvLayout(
        layers=len(geometry.windows),
        page_tokens=cfg.page_tokens,
        kv_heads=geometry.kv_heads,
        head_dim=geometry.head_dim,
        dtype=str(model.dtype).removeprefix("torch."),
        dtype_bytes=model.dtype.itemsize,
        model=_model_name(cfg) + weights,
    )


def _total_pages(cfg: EngineConfig, layout: KvLayout) -> int:
    pages = cfg.pool_pages or (cfg.pool_bytes or 0) // layout.page_bytes
    if pages == 0:
        raise UnusableMemory(f"pool_bytes={cfg.pool_bytes} holds no page: one has {layout.page_bytes} bytes")
    return pages


def _model_name(cfg: EngineConfig) -> str:
    """The hub id, or the name of the directory: the same on workers that keep the model in different places."""
    path = Path(cfg.model)
    return path.resolve().name if path.is_dir() else cfg.model


def _eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    generation = getattr(model, "generation_config", None)
    named = getattr(generation, "eos_token_id", None)
    if named is None:
        named = model.config.get_text_config(decoder=True).eos_token_id
    if named is None:
        return ()
    return tuple(named) if isinstance(named, list) else (named,)


def _warm_up(engine: TorchEngine, chunks: Sequence[int]) -> None:
    """A prompt and a decode step: kernels are chosen and memory is touched before the first request pays for it."""
    room = min(engine.max_model_len, engine.total_pages * engine.layout.page_tokens)
    pages = range(engine.layout.pages_for(room))
    spec = SampleSpec(SamplingParams(temperature=0.0), 0, (), ())
    start = 0
    for wanted in (*chunks, 1):
        tokens = min(wanted, room - start if wanted == 1 else room - 1 - start)
        if tokens > 0:
            engine.forward([Row([0] * tokens, start, pages, spec)])
            start += tokens
