"""What does one message of every kind look like, and which bytes is it?

Every optional field is set, so that a change of any field changes the bytes. After a change that is meant, raise
PROTOCOL_VERSION, say why in its history, and write the bytes anew with `python -m tests.support.messages`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from runtime import flight
from runtime.description import ModelInfo, PoolInfo
from runtime.params import FinishReason, SamplingParams
from runtime.stages import DecodeStages, Ledger, PrefillStages
from runtime.tokens import SampledToken, TokenLogprobs
from transport import codec
from transport.codec import Codec
from transport.kv_messages import Greeting, Header, KvMessage, Landing, Offer, Refused, Trailer
from transport.messages import client, launcher, worker
from transport.messages.common import PROTOCOL_VERSION, KvPeer, Message

GOLDEN = Path(__file__).parents[1] / "contract" / "golden_messages.json"

SAMPLING = SamplingParams(
    max_tokens=16,
    min_tokens=2,
    temperature=0.5,
    top_k=40,
    top_p=0.75,
    min_p=0.125,
    repetition_penalty=1.5,
    presence_penalty=-0.5,
    frequency_penalty=0.25,
    logit_bias={7: -1.5},
    seed=-5,
    ignore_eos=True,
    stop=("END",),
    stop_token_ids=(3,),
    logprobs=1,
    grammar="start: /a/",
)
PEER = KvPeer(worker_id="decode-0", epoch=(1 << 63) - 1, address=b"\x00\xff", host_id="boot")
TOKEN = SampledToken(42, TokenLogprobs(-0.5, ((42, -0.5), (7, -2.0))))
PREFILL_STAGES = PrefillStages(
    queue_s=0.5,
    compute_s=1.5,
    chunks=2,
    chunk_s=(1.0, 0.25),
    send_s=0.0625,
    transfer_first_s=1.125,
    transfer_s=0.25,
    transfer_tail_s=0.125,
    transfer_bytes=4096,
    pieces=3,
)
DECODE_STAGES = DecodeStages(
    intake_s=0.5,
    verify_s=0.25,
    verify_wait_s=0.125,
    join_s=0.125,
    decode_s=2.0,
    first_step_s=0.25,
    send_s=0.0625,
    steps=15,
)
DECODE_STAGES = DecodeStages(intake_s=0.5, verify_s=0.25, join_s=0.125, decode_s=2.0, steps=15)
RECORDED = (
    flight.Recorded(0.5, flight.Step(0.25, 3, 16, (7, 8))),
    flight.Recorded(0.5, flight.Chunk(0.25, 7, 16, 16)),
    flight.Recorded(0.5, flight.Transfer(0.5, 7, 9, 4096, 3, 0.25, True)),
    flight.Recorded(0.5, flight.Arrival(0.5, 0.25, 0.125, 7, 3, True)),
    flight.Recorded(0.5, flight.LastToken(7, 16)),
    flight.Recorded(0.5, flight.InPhase(0.5, 7, "queued", True)),
    flight.Recorded(0.5, flight.Gauge("free pages", 5, 6)),
)
LEDGER = Ledger(
    prepare_s=0.0625,
    tokenise_s=0.03125,
    queue_s=0.25,
    admit_s=0.0625,
    dispatch_s=0.125,
    first_token_s=1.0,
    first_out_s=0.5,
    handoff_gap_s=0.5,
    total_s=4.0,
    detokenise_s=0.125,
    send_s=0.25,
    prefill=PREFILL_STAGES,
    decode=DECODE_STAGES,
    prefill_worker="prefill-0",
    decode_worker="decode-0",
)
REQUEST = client.GenerateRequest(
    prompt="Once",
    prompt_token_ids=(1, 2),
    messages=(
        client.ChatMessage(
            role="assistant",
            content="hi",
            name="n",
            tool_calls=(client.ToolCall(id="c", name="f", arguments="{}"),),
            tool_call_id="c",
        ),
    ),
    tools=({"type": "function"},),
    template_arguments={"thinking": False},
    add_special_tokens=False,
    truncate_prompt_tokens=5,
    skip_special_tokens=False,
    include_stop_string=True,
    model="m",
    sampling=SAMPLING,
    timeout_s=30.0,
)
HEADER = Header("prefill-0", 1, 2, "fingerprint")


@dataclass(frozen=True)
class Direction:
    """One direction of one link: its union of messages, the decoder of its receiver, one message of each kind."""

    union: object
    codec: Callable[[], Codec[Any]]
    examples: Sequence[Message]


LINKS: Mapping[str, Direction] = MappingProxyType(
    {
        "client -> coordinator": Direction(
            client.ToCoordinator,
            codec.coordinator_side_of_client_link,
            (
                client.ClientHello(protocol=1),
                client.Submit(id="r1", request=msgspec.Raw(msgspec.msgpack.encode(REQUEST))),
                client.Cancel(id="r1"),
                client.Ping(),
                client.AskStatus(),
                client.AskLedgers(skip=100),
                client.AskTimeline(last_s=10.0),
            ),
        ),
        "coordinator -> client": Direction(
            client.ToClient,
            codec.client_side,
            (
                client.Welcome(
                    protocol=1,
                    model="m",
                    max_model_len=2048,
                    prefill_workers=2,
                    decode_workers=1,
                    client_timeout_s=6.0,
                ),
                client.Goodbye(reason="another version"),
                client.Delta(id="r1", index=3, token_ids=(42,), text="é", logprobs=(TokenLogprobs(-0.5),)),
                client.Done(
                    id="r1",
                    finish_reason=FinishReason.STOP,
                    text=".",
                    prompt_tokens=5,
                    completion_tokens=16,
                    ledger=LEDGER,
                    stop_reason="END",
                ),
                client.Failed(id="r1", code="worker_lost", message="gone", param="prompt"),
                client.Pong(),
                client.CellStatus(
                    workers=(
                        client.WorkerStatus(
                            worker_id="decode-0",
                            role="decode",
                            pid=4711,
                            total_pages=9,
                            free_pages=5,
                            reserved_pages=3,
                            quarantined_pages=1,
                            running=2,
                            waiting=1,
                        ),
                    ),
                    queued=3,
                    in_flight=6,
                ),
                client.Ledgers(
                    answers=(
                        client.AnswerLedger(request=7, id="r1", ended_s=1.5, prompt_tokens=5, tokens=16, ledger=LEDGER),
                    )
                ),
                client.TimelinePart(
                    process="decode-0",
                    role="decode",
                    pid=4711,
                    delay_s=0.5,
                    uncertainty_s=0.25,
                    reaches_s=60.0,
                    events=RECORDED,
                ),
                client.TimelineEnd(missing=("decode-1",), error="another timeline is being told"),
            ),
        ),
        "worker -> coordinator": Direction(
            worker.ToCoordinator,
            codec.coordinator_side_of_worker_link,
            (
                worker.Loading(worker_id="decode-0", stage="weights", fraction=0.5),
                worker.Hello(
                    protocol=1,
                    role="decode",
                    peer=PEER,
                    pool=PoolInfo(fingerprint="f", page_tokens=16, page_bytes=4096, total_pages=9),
                    model=ModelInfo(name="m", vocab_size=256, max_model_len=2048, eos_token_ids=(2,)),
                    max_batch=8,
                    pid=4711,
                ),
                worker.Heartbeat(free_pages=5, reserved_pages=3, quarantined_pages=1, running=2, waiting=1),
                worker.SelfTestDone(
                    transfer_id=9,
                    quarantined_pages=1,
                    error="lost",
                    transport="shm",
                    gigabytes_per_s=4.5,
                    memcpy_gigabytes_per_s=11.0,
                ),
                worker.Prefilled(request_id=7, token=TOKEN, finish=FinishReason.LENGTH),
                worker.PrefillReleased(request_id=7, quarantined_pages=1, stages=PREFILL_STAGES, error="lost"),
                worker.Tokens(steps=(worker.TokenStep(7, 1, TOKEN, FinishReason.STOP),)),
                worker.Released(
                    request_id=7, quarantined_pages=1, stages=DECODE_STAGES, error="lost", prefill=PREFILL_STAGES
                ),
                worker.RecordingPart(timeline_id=3, part=1, parts=2, reaches_s=60.0, events=RECORDED),
            ),
        ),
        "coordinator -> worker": Direction(
            worker.ToWorker,
            codec.worker_side,
            (
                worker.Welcome(coordinator_epoch=3, heartbeat_s=0.5, timeout_s=4.0),
                worker.Rejected(reason="another layout"),
                worker.Beat(),
                worker.SelfTest(transfer_id=9, peer=PEER, pages=16),
                worker.Prefill(request_id=7, transfer_id=9, peer=PEER, prompt=(1, 2), sampling=SAMPLING),
                worker.Admit(request_id=7, transfer_id=9, peer=PEER, prompt=(1, 2), sampling=SAMPLING, pages=3),
                worker.Serve(request_id=7, prompt=(1, 2), sampling=SAMPLING, pages=3),
                worker.CancelRequest(request_id=7),
                worker.PeerGone(worker_id="prefill-0", epoch=3),
                worker.AskRecording(timeline_id=3, last_s=10.0, part=1),
                worker.Shutdown(),
            ),
        ),
        "launcher -> coordinator": Direction(
            launcher.ToCoordinator,
            codec.coordinator_side_of_launcher_link,
            (
                launcher.LauncherHello(protocol=1, prefill_workers=2, decode_workers=1),
                launcher.WorkerExited(worker_id="decode-0"),
                launcher.Drain(),
            ),
        ),
        "coordinator -> launcher": Direction(
            launcher.ToLauncher,
            codec.launcher_side,
            (
                launcher.WorkerProgress(worker_id="decode-0", stage="weights", fraction=0.5),
                launcher.ClusterReady(
                    http_port=8000,
                    model="m",
                    max_model_len=2048,
                    workers=(
                        launcher.WorkerSummary(
                            worker_id="decode-0",
                            role="decode",
                            epoch=3,
                            total_pages=9,
                            page_tokens=16,
                            page_bytes=4096,
                        ),
                    ),
                    links=(
                        launcher.LinkSummary(
                            prefill="prefill-0",
                            decode="decode-0",
                            transport="shm",
                            gigabytes_per_s=4.5,
                            memcpy_gigabytes_per_s=11.0,
                            slow=True,
                        ),
                    ),
                ),
                launcher.WorkerRejected(worker_id="decode-0", reason="another layout"),
                launcher.WorkerExpired(worker_id="decode-0"),
                launcher.DrainProgress(in_flight=6),
                launcher.Drained(),
            ),
        ),
        "kv port <-> kv port": Direction(
            KvMessage,
            lambda: Codec(KvMessage),
            (
                Greeting(header=HEADER),
                Offer(header=HEADER, transfer_id=9, runs=(4096, 8192), piece_bytes=8 << 20),
                Landing(header=HEADER, transfer_id=9, runs=(12288,), piece_bytes=8 << 20),
                Refused(header=HEADER, transfer_id=9, reason="restarted"),
                Trailer(header=HEADER, transfer_id=9, digests=b"\x01" * 8, note=b"\x2a", error="cancelled"),
            ),
        ),
    }
)


def encoded() -> dict[str, dict[str, str]]:
    """Hexadecimal bytes by direction and name of the message."""
    encode = msgspec.msgpack.Encoder().encode
    return {
        direction: {type(example).__name__: encode(example).hex() for example in link.examples}
        for direction, link in LINKS.items()
    }


def main() -> None:
    GOLDEN.write_text(json.dumps({"protocol": PROTOCOL_VERSION, "messages": encoded()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
