"""Does a client get a whole timeline, or an error that says why not?"""

import asyncio
import json
from pathlib import Path

import pytest

from launch import trace
from launch.client import ServerUnreachable, StreamingClient
from launch.trace import fetch_trace, write_trace
from runtime.flight import Recorded, Step
from tests.support.scripted_server import ManualClock, ScriptedServer, play
from tests.support.trace import check_trace
from transport.messages.client import AskTimeline, TimelineEnd, TimelinePart

PART = TimelinePart(
    process="prefill-0",
    role="prefill",
    pid=1,
    delay_s=0.0,
    uncertainty_s=0.0,
    events=(Recorded(1.0, Step(0.5, 0, 8)),),
)


def test_all_parts_until_the_end_make_one_document(tmp_path: Path) -> None:
    async def body(server: ScriptedServer, client: StreamingClient, _: ManualClock) -> None:
        server.say(PART)  # of an earlier call that nobody waited for
        await client.status()
        fetching = asyncio.create_task(fetch_trace(client, 12.5))
        await server.hears(AskTimeline)
        assert server.heard[-1] == AskTimeline(last_s=12.5)
        server.say(PART, PART, TimelineEnd(missing=("decode-0",)))
        document = await fetching
        write_trace(document, tmp_path / "t.json")
        read = json.loads((tmp_path / "t.json").read_bytes())
        check_trace(read)
        assert read["otherData"]["missing"] == ["decode-0"]
        assert [process["events"] for process in read["otherData"]["processes"]] == [2]

    play(tmp_path, body)


def test_a_refusal_is_an_error_with_its_reason(tmp_path: Path) -> None:
    async def body(server: ScriptedServer, client: StreamingClient, _: ManualClock) -> None:
        fetching = asyncio.create_task(fetch_trace(client, 1.0))
        await server.hears(AskTimeline)
        server.say(TimelineEnd(error="another timeline is being told"))
        with pytest.raises(ServerUnreachable, match="another timeline"):
            await fetching

    play(tmp_path, body)


def test_nobody_waits_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "PART_TIMEOUT_S", 0.05)

    async def body(_: ScriptedServer, client: StreamingClient, __: ManualClock) -> None:
        with pytest.raises(ServerUnreachable, match="did not tell"):
            await fetch_trace(client, 1.0)

    play(tmp_path, body)
