"""What does it cost that one process computes the prompt and another one the answer?

Measures, for one request at a time on a cell with one prefill and one decode worker, with the default model on the CPU
unless `bench.gpu` asks for another model on a GPU:

- hand-off gap: token 1 -> token 2 at the client, less a decode step (the median ITL behind it), which the first token
  of any server's decode costs, too;
- what of it the workers' ledger explains: the transfer's tail behind token 1, the digest check;
- TTFT at the client, what of it is not the prefill worker's compute, and the prefill of the same prompt by the same
  engine in one process (`bench.one_process`) on the prefill worker's cores, while the cell is idle. The two take turns,
  and who is first alternates; each prompt is new.

Limited by the cores of one worker: with two cores, coordinator and client share them with the workers. How a process's
memory happens to lie makes some percent of difference between two processes of the same program, for as long as they
live: a difference of TTFT below that means nothing, while `TTFT less compute` is taken within each request. Does not
measure load (several requests at once), text (prompts are token ids) or the interference that a one-process server has.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from msgspec import Struct

from bench.cell import cell, model_options
from bench.child import Channel, started
from bench.rows import Row, summarise
from decode_worker.config import DecodeConfig
from engine.config import AnyEngineConfig
from launch.cell import RunningCell
from launch.client import StreamingClient
from launch.config import CellOptions, worker_configs
from prefill_worker.config import PrefillConfig
from runtime.params import SamplingParams

_OUTPUT_TOKENS = 18
_TOKEN_IDS = range(1000, 40_000)  # ordinary words of the default model's vocabulary
_SEED = 1
_MIB = 1 << 20

_NOTES = {
    "handoff gap less a step": "the tail of the transfer, the digest check, two messages and the first step's start",
    "decode step": "memory bandwidth where the decode worker computes: every step reads all weights",
    "transfer tail": "the pages of the last chunk, which no computing can hide, at the rate of `transfer`",
    "digest check": "memory bandwidth: one pass over the pages of the prompt on the decode worker",
    "TTFT split": "the prefill itself, on the cores, or the GPU, of one worker",
    "TTFT less compute": "the messages client - coordinator - prefill worker and back; a busy core delays each",
    "TTFT one process": "the same prefill; no client, coordinator, digest or transfer",
    "TTFT split - one process": "digests, sends and messages; two processes of one program differ by themselves, too",
}


class Load(Struct, frozen=True):
    """To the one process: what to load."""

    engine: AnyEngineConfig
    chunk_tokens: int


class Loaded(Struct, frozen=True):
    pass


class Prompt(Struct, frozen=True):
    token_ids: tuple[int, ...]


class Answer(Struct, frozen=True):
    """Token 1, and the seconds from the prompt to it."""

    token_id: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Lengths of prompts, how often each is measured, and of which token ids they are drawn."""

    prompt_tokens: tuple[int, ...]
    rounds: int
    token_ids: range = _TOKEN_IDS


_FULL = Plan((16, 128, 512, 1024), rounds=5)
_QUICK = Plan((16, 256), rounds=2)


@dataclass(slots=True)
class _Samples:
    """Seconds by quantity, for one length of prompt."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {quantity: [] for quantity in _NOTES})
    transfer_bytes: int = 0

    def add(self, quantity: str, seconds: float) -> None:
        self.seconds[quantity].append(seconds)


async def run(*, quick: bool) -> list[Row]:
    return await measured(model_options(), _QUICK if quick else _FULL)


async def measured(options: CellOptions, plan: Plan, show: Callable[[str], None] | None = None) -> list[Row]:
    """On a cell of these options, which have one worker of each role; `show` as of `bench.cell.cell`."""
    async with (
        cell(options, show=show) as running,
        started("bench.one_process", running.placement.prefill[0]) as one_process,
        StreamingClient(running.endpoint) as client,
    ):
        prefill = _prefill_config(options, running)
        one_process.send(Load(engine=prefill.engine, chunk_tokens=prefill.chunk_tokens))
        await one_process.receive(Loaded)
        for prompt_tokens in plan.prompt_tokens:  # kernels are chosen per shape
            await _measure(client, one_process, _prompt(plan, prompt_tokens, 0), _Samples(), split_first=True)
        samples = {prompt_tokens: _Samples() for prompt_tokens in plan.prompt_tokens}
        for number in range(1, plan.rounds + 1):
            for prompt_tokens in plan.prompt_tokens:
                prompt = _prompt(plan, prompt_tokens, number)
                await _measure(client, one_process, prompt, samples[prompt_tokens], split_first=number % 2 == 0)
    return [row for prompt_tokens in plan.prompt_tokens for row in _rows(prompt_tokens, samples[prompt_tokens])]


def _prefill_config(options: CellOptions, running: RunningCell) -> PrefillConfig | DecodeConfig:
    """The configuration of the cell's prefill worker, made in the way in which the launcher made it."""
    return worker_configs(options, Path(), 0, running.placement)["prefill-0"]


def _prompt(plan: Plan, prompt_tokens: int, number: int) -> tuple[int, ...]:
    return tuple(random.Random(f"{_SEED} {prompt_tokens} {number}").choices(plan.token_ids, k=prompt_tokens))


async def _measure(
    client: StreamingClient, one_process: Channel, prompt: tuple[int, ...], samples: _Samples, *, split_first: bool
) -> None:
    """One prompt on both sides.

    Raises:
        AssertionError: the two sides disagree about token 1.
    """
    if split_first:
        split = await _split(client, prompt, samples)
        alone = await _alone(one_process, prompt)
    else:
        alone = await _alone(one_process, prompt)
        split = await _split(client, prompt, samples)
    if split.token_id != alone.token_id:
        raise AssertionError(f"token 1 of {len(prompt)} is {split.token_id} split and {alone.token_id} in one process")
    samples.add("TTFT split", split.seconds)
    samples.add("TTFT one process", alone.seconds)
    samples.add("TTFT split - one process", split.seconds - alone.seconds)


async def _split(client: StreamingClient, prompt: Sequence[int], samples: _Samples) -> Answer:
    sampling = SamplingParams(max_tokens=_OUTPUT_TOKENS, temperature=0.0, ignore_eos=True)
    done = await client.generate(prompt_token_ids=prompt, sampling=sampling).finish()
    ledger = done.ledger
    if ledger is None or ledger.prefill is None or ledger.decode is None:
        raise AssertionError("the request ended without the numbers of its workers")
    step_s = median(done.gaps_s[2:])
    samples.add("handoff gap less a step", done.handoff_gap_s - step_s)
    samples.add("decode step", step_s)
    samples.add("transfer tail", ledger.prefill.transfer_tail_s)
    samples.add("digest check", ledger.decode.verify_s)
    samples.add("TTFT less compute", done.ttft_s - ledger.prefill.compute_s)
    samples.transfer_bytes = ledger.prefill.transfer_bytes
    return Answer(token_id=done.token_ids[0], seconds=done.ttft_s)


async def _alone(one_process: Channel, prompt: tuple[int, ...]) -> Answer:
    one_process.send(Prompt(token_ids=prompt))
    return await one_process.receive(Answer)


def _rows(prompt_tokens: int, samples: _Samples) -> list[Row]:
    prompt: dict[str, str | int] = {"prompt tokens": prompt_tokens}
    kv: dict[str, str | int] = {"KV MiB": f"{samples.transfer_bytes / _MIB:.1f}"}
    return [
        summarise(
            "handoff",
            quantity,
            seconds,
            unit="ms",
            scale=1e3,
            limited_by=_NOTES[quantity],
            parameters=prompt | (kv if quantity in ("transfer tail", "digest check") else {}),
        )
        for quantity, seconds in samples.seconds.items()
    ]
