"""Does a client see its tokens when they arrive, and an error when none will?

The server of these tests says what a test tells it to say, over a real socket.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from launch.client import Completion, Generation, RequestFailed, ServerUnreachable, StreamedToken, StreamingClient
from runtime.params import FinishReason, SamplingParams
from runtime.stages import Ledger
from runtime.tokens import TokenLogprobs
from tests.support.scripted_server import STATUS, WELCOME, ManualClock, ScriptedServer, play
from transport import codec
from transport.control import Context, new_context
from transport.messages.client import (
    Cancel,
    Delta,
    Done,
    Failed,
    Goodbye,
    Ping,
    Submit,
)


def delta(index: int, *token_ids: int, text: str = "", id_: str = "r0") -> Delta:
    return Delta(id=id_, index=index, token_ids=token_ids, text=text)


def done(text: str = "", id_: str = "r0", tokens: int = 0) -> Done:
    return Done(
        id=id_,
        finish_reason=FinishReason.STOP,
        text=text,
        prompt_tokens=5,
        completion_tokens=tokens,
        ledger=Ledger(total_s=2.0),
        stop_reason="END",
    )


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_a_request_is_sent_as_it_was_asked_for(tmp_path: Path) -> None:
    async def body(server: ScriptedServer, client: StreamingClient, _: ManualClock) -> None:
        client.generate("Once", sampling=SamplingParams(max_tokens=3), timeout_s=9.0)
        client.generate(messages=[("user", "hi")], model="m")
        client.generate(prompt_token_ids=[1, 2])
        await server.hears(Submit, 3)
        submits = [message for message in server.heard if isinstance(message, Submit)]
        assert [submit.id for submit in submits] == ["r0", "r1", "r2"]
        requests = [codec.generate_request(submit.request) for submit in submits]
        assert requests[0].prompt == "Once"
        assert (requests[0].sampling.max_tokens, requests[0].timeout_s) == (3, 9.0)
        assert requests[1].messages is not None
        assert (requests[1].messages[0].content, requests[1].model) == ("hi", "m")
        assert requests[2].prompt_token_ids == (1, 2)

    play(tmp_path, body)


def test_times_are_those_of_arrival_not_those_of_reading(tmp_path: Path) -> None:
    async def body(server: ScriptedServer, client: StreamingClient, clock: ManualClock) -> None:
        generation = client.generate("x")
        await server.hears(Submit)
        for at, message in ((101.5, delta(0, 7)), (101.75, delta(1, 8)), (102.75, delta(2, 9)), (103.0, done())):
            clock.time = at
            server.say(message)
            await client.status()  # answered in order: everything before it has arrived
        clock.time = 500.0
        tokens = [token async for token in generation]
        assert [token.since_send_s for token in tokens] == [1.5, 1.75, 2.75]
        assert [token.gap_s for token in tokens] == [1.5, 0.25, 1.0]
        completion = generation.completion
        assert (completion.ttft_s, completion.handoff_gap_s, completion.tpot_s) == (1.5, 0.25, 0.625)
        assert completion.total_s == 3.0

    play(tmp_path, body)


def test_merged_tokens_come_one_by_one_with_their_text_at_the_last(tmp_path: Path) -> None:
    async def body(server: ScriptedServer, client: StreamingClient, clock: ManualClock) -> None:
        generation = client.generate("x")
        await server.hears(Submit)
        clock.time = 101.0
        server.say(delta(0, 7, 8, 9, text="abc"), done(text="d", tokens=3))
        tokens = [token async for token in generation]
        assert tokens == [
            StreamedToken(0, 7, "", 1.0, 1.0),
            StreamedToken(1, 8, "", 1.0, 0.0),
            StreamedToken(2, 9, "abc", 1.0, 0.0),
        ]
        completion = generation.completion
        assert (completion.token_ids, completion.text) == ([7, 8, 9], "abcd")
        assert (completion.finish_reason, completion.stop_reason) == (FinishReason.STOP, "END")
        assert (completion.prompt_tokens, completion.ledger) == (5, Ledger(total_s=2.0))

    play(tmp_path, body)


def test_logprobs_stay_with_their_tokens(tmp_path: Path) -> None:
    async def body(server: ScriptedServer, client: StreamingClient, _: ManualClock) -> None:
        generation = client.generate("x")
        await server.hears(Submit)
        given = (TokenLogprobs(-0.5, ((7, -0.5),)), TokenLogprobs(-1.5))
        server.say(Delta(id="r0", index=0, token_ids=(7, 8), text="ab", logprobs=given), done())
        assert [token.logprobs async for token in generation] == list(given)
        assert generation.completion.logprobs == list(given)

    play(tmp_path, body)


def test_streams_of_one_connection_do_not_mix(tmp_path: Path) -> None:
    async def body(server: ScriptedServer, client: StreamingClient, _: ManualClock) -> None:
        first, second = client.generate("x"), client.generate("y")
        await server.hears(Submit, 2)
        server.say(delta(0, 20, id_="r1"), delta(0, 10), delta(1, 21, id_="r1"), done(id_="r1"), done())
        server.say(delta(0, 1, id_="r7"), done(id_="r7"))  # of nobody
        assert (await first.finish()).token_ids == [10]
        assert (await second.finish()).token_ids == [20, 21]

    play(tmp_path, body)


def test_a_gap_in_the_stream_is_noticed(tmp_path: Path) -> None:
    async def body(server: ScriptedServer, client: StreamingClient, _: ManualClock) -> None:
        generation = client.generate("x")
        await server.hears(Submit)
        server.say(delta(0, 7), delta(2, 9))
        with pytest.raises(AssertionError, match="token 2 arrived after 1"):
            await generation.finish()

    play(tmp_path, body)


def test_a_completion_without_tokens_has_no_latencies() -> None:
    assert (Completion().ttft_s, Completion().tpot_s, Completion().handoff_gap_s) == (0.0, 0.0, 0.0)
    assert Completion(gaps_s=[0.5]).tpot_s == 0.0


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_failed_request_raises_what_the_server_said(tmp_path: Path) -> None:
    async def body(server: ScriptedServer, client: StreamingClient, _: ManualClock) -> None:
        generation = client.generate("x")
        await server.hears(Submit)
        server.say(delta(0, 7, text="a"), Failed(id="r0", code="timeout", message="too late", param="timeout_s"))
        assert (await generation.__anext__()).token_id == 7
        with pytest.raises(RequestFailed, match="too late") as caught:
            await generation.__anext__()
        assert (caught.value.code, caught.value.param) == ("timeout", "timeout_s")
        assert generation.completion.token_ids == [7]
        assert [token async for token in generation] == [], "it is over"

    play(tmp_path, body)


@pytest.mark.parametrize("farewell", ["goodbye", "garbage"])
def test_the_end_of_the_connection_ends_every_request(tmp_path: Path, farewell: str) -> None:
    async def body(server: ScriptedServer, client: StreamingClient, _: ManualClock) -> None:
        generations = [client.generate("x"), client.generate("y")]
        await server.hears(Submit, 2)
        if farewell == "goodbye":
            server.say(Goodbye(reason="you were silent"))
        else:
            server.say_bytes(b"\x81\xa4type\xa3Foo")
        for generation in generations:
            with pytest.raises(ServerUnreachable, match="silent" if farewell == "goodbye" else "protocol"):
                await generation.finish()

    play(tmp_path, body)


def test_a_server_that_falls_silent_is_unreachable(tmp_path: Path) -> None:
    async def body(server: ScriptedServer, client: StreamingClient, clock: ManualClock) -> None:
        generation = client.generate("x")
        await server.hears(Submit)
        server.answers = False
        await asyncio.sleep(0.02)  # what was said before is not silence
        clock.time += 1000.0
        with pytest.raises(ServerUnreachable, match=r"silent for 0\.2 s"):
            await generation.finish()
        with pytest.raises(ServerUnreachable, match="silent"):
            await client.generate("later").finish()

    play(tmp_path, body, timeout_s=0.2)


def test_a_client_with_nothing_to_say_pings(tmp_path: Path) -> None:
    async def body(server: ScriptedServer, client: StreamingClient, clock: ManualClock) -> None:
        generation = client.generate("x")
        for beat in range(1, 6):
            await server.hears(Ping, beat)
            clock.time += 0.1  # slow, but not silent
        server.say(done())
        await generation.finish()

    play(tmp_path, body, timeout_s=0.2)


# --- connecting ------------------------------------------------------------------------------------------------------


def connect(tmp_path: Path, prepare: Callable[[ScriptedServer], None] | None, timeout_s: float) -> StreamingClient:
    """A client that has entered and left; `prepare` None: there is no server."""

    async def main(context: Context) -> StreamingClient:
        endpoint = f"ipc://{tmp_path}/s"
        server = ScriptedServer(context, endpoint) if prepare is not None else None
        if server is not None and prepare is not None:
            prepare(server)
        try:
            async with StreamingClient(endpoint, connect_timeout_s=timeout_s) as client:
                return client
        finally:
            if server is not None:
                server.close()

    context = new_context()
    try:
        return asyncio.run(main(context))
    finally:
        context.destroy(linger=0)


def test_a_welcome_says_what_is_served(tmp_path: Path) -> None:
    assert connect(tmp_path, lambda _: None, 10.0).server == WELCOME


def test_nobody_there_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(ServerUnreachable, match="no answer"):
        connect(tmp_path, None, 0.1)


def test_a_server_that_does_not_answer_is_unreachable(tmp_path: Path) -> None:
    def silent(server: ScriptedServer) -> None:
        server.answers = False

    with pytest.raises(ServerUnreachable, match="no answer"):
        connect(tmp_path, silent, 0.1)


def test_a_server_that_refuses_says_why(tmp_path: Path) -> None:
    def refuse(server: ScriptedServer) -> None:
        server.welcome = Goodbye(reason="another protocol")

    with pytest.raises(ServerUnreachable, match="another protocol"):
        connect(tmp_path, refuse, 10.0)


def test_a_client_that_waits_for_a_loading_server_keeps_saying_so(tmp_path: Path) -> None:
    """The server forgets clients that are silent, and loading a model takes longer than its patience."""

    def loading(server: ScriptedServer) -> None:
        server.hellos_ignored = 2

    assert connect(tmp_path, loading, 10.0).server == WELCOME


# --- cancelling and leaving ------------------------------------------------------------------------------------------


def cancels(server: ScriptedServer) -> list[str]:
    return [message.id for message in server.heard if isinstance(message, Cancel)]


def test_a_cancelled_request_ends_with_what_has_arrived(tmp_path: Path) -> None:
    async def body(server: ScriptedServer, client: StreamingClient, _: ManualClock) -> None:
        async with client.generate("x") as generation:
            await server.hears(Submit)
            server.say(delta(0, 7, text="a"))
            async for token in generation:
                assert token.token_id == 7
                break
        await server.hears(Cancel)
        assert cancels(server) == ["r0"]
        server.say(delta(1, 8), done())
        assert (await generation.finish()).token_ids == [7, 8]

    play(tmp_path, body)


def test_an_ended_request_is_not_cancelled(tmp_path: Path) -> None:
    async def body(server: ScriptedServer, client: StreamingClient, _: ManualClock) -> None:
        async with client.generate("x") as generation:
            await server.hears(Submit)
            server.say(done())
            await generation.finish()
        client.generate("y")
        await server.hears(Submit, 2)
        assert cancels(server) == []

    play(tmp_path, body)


def test_leaving_cancels_what_is_open_and_wakes_who_waits(tmp_path: Path) -> None:
    async def wait_for(generation: Generation) -> None:
        with pytest.raises(ServerUnreachable, match="closed its connection"):
            await generation.finish()

    async def main(context: Context) -> None:
        endpoint = f"ipc://{tmp_path}/s"
        server = ScriptedServer(context, endpoint)
        async with asyncio.timeout(10):
            async with StreamingClient(endpoint) as client:
                generations = [client.generate("x") for _ in range(3)]
                waiting = asyncio.create_task(wait_for(generations[0]))
                await server.hears(Submit, 3)
                server.say(done(id_="r1"))
                await client.status()
            await waiting
            await server.hears(Cancel, 2)
        assert cancels(server) == ["r0", "r2"]
        generations[2].cancel()  # there is nobody to tell, and nothing to be done about it
        with pytest.raises(ServerUnreachable, match="not connected"):
            client.generate("z")
        server.close()

    context = new_context()
    try:
        asyncio.run(main(context))
    finally:
        context.destroy(linger=0)


def test_a_client_that_vanishes_says_nothing(tmp_path: Path) -> None:
    async def body(server: ScriptedServer, client: StreamingClient, _: ManualClock) -> None:
        client.generate("x")
        await server.hears(Submit)
        client.abandon()
        await asyncio.sleep(0.02)
        assert cancels(server) == []

    play(tmp_path, body)


def test_status_is_asked_for_and_told(tmp_path: Path) -> None:
    async def body(_: ScriptedServer, client: StreamingClient, __: ManualClock) -> None:
        assert [await client.status() for _ in range(2)] == [STATUS, STATUS]

    play(tmp_path, body)


def test_a_raw_request_is_sent_as_it_is(tmp_path: Path) -> None:
    async def body(server: ScriptedServer, client: StreamingClient, _: ManualClock) -> None:
        client.submit_raw(msgspec.msgpack.encode({"prompt": 7}))
        await server.hears(Submit)
        (submit,) = [message for message in server.heard if isinstance(message, Submit)]
        assert bytes(submit.request) == msgspec.msgpack.encode({"prompt": 7})

    play(tmp_path, body)
