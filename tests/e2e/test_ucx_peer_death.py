"""What does UCX leave of a hand-off when one of its processes is killed or stopped?

The survivor must neither abort nor hang, must get its pages back, and must be able to go on with the next peer.
"""

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import pytest

from tests.support import ucx_peer
from tests.support.ucx_peer import AskPainted, Command, Leave, Outcomes, Paint, PeerGone, Start
from transport.messages.common import KvPeer

pytestmark = pytest.mark.e2e

T = TypeVar("T")
TRANSFERS = 4
LOOP_BLOCKED_S = 0.1
SETTLED_S = 0.9  # less than the grace of the port: UCX has let go by itself

_numbers = itertools.count(1)


class Process:
    """A `tests.support.ucx_peer`."""

    def __init__(self, role: Literal["prefill", "decode"], environment: dict[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=ucx_peer.main, args=(role, next(_numbers), theirs, environment), daemon=True
        )
        self._process.start()
        theirs.close()
        self.peer = self.answer(KvPeer)
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def say(self, command: Command) -> None:
        self._connection.send_bytes(msgspec.msgpack.encode(command))

    def answer(self, type_: type[T]) -> T:
        assert ready(self._connection), "no answer"
        return msgspec.msgpack.decode(self._connection.recv_bytes(), type=type_)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def leave(self) -> None:
        """
        Raises:
            AssertionError: it does not end, or not well.
        """
        self.say(Leave())
        self._process.join(10)
        assert self._process.exitcode == 0

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def ready(connection: Connection) -> bool:
    try:
        return connection.poll(20)
    except (EOFError, OSError):
        return False


@contextlib.contextmanager
def processes(environment: dict[str, str] | None = None) -> Iterator["Factory"]:
    factory = Factory(environment or {})
    try:
        yield factory
    finally:
        for process in factory.made:
            process.kill()


class Factory:
    def __init__(self, environment: dict[str, str]) -> None:
        self.made: list[Process] = []
        self._environment = environment

    def __call__(self, role: Literal["prefill", "decode"]) -> Process:
        self.made.append(Process(role, self._environment))
        return self.made[-1]


def begin(prefill: Process, decode: Process, *, finish: bool = True) -> None:
    """Let both start some transfers; they are under way when this returns, or already over."""
    transfer_ids = [next(_numbers) for _ in range(TRANSFERS)]
    decode.say(Start(prefill.peer, transfer_ids, finish))
    assert decode.answer(bool)
    prefill.say(Start(decode.peer, transfer_ids, finish))
    assert prefill.answer(bool)


def outcomes(process: Process, *, report: bool) -> Outcomes:
    process.say(PeerGone(report=report))
    return process.answer(Outcomes)


def segments(pids: set[int]) -> list[str]:
    """Shared memory that these processes, and nobody else, have left."""
    sysv = [line for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:] if int(line.split()[4]) in pids]
    return sysv + [path.name for path in Path("/dev/shm").glob("ucx_*")]


def other(role: Literal["prefill", "decode"]) -> Literal["prefill", "decode"]:
    return "decode" if role == "prefill" else "prefill"


@pytest.mark.parametrize("survivor_role", ["prefill", "decode"])
@pytest.mark.parametrize("tls", ["", "tcp"])
def test_the_survivor_of_many_deaths_goes_on(survivor_role: Literal["prefill", "decode"], tls: str) -> None:
    """Killed at six moments of four transfers at once; the seventh peer lives."""
    draw = random.Random(survivor_role + tls)
    with processes({"UCX_TLS": tls} if tls else {}) as start:
        survivor = start(survivor_role)
        for delay_s in [0.0, 0.001, *(draw.uniform(0, 0.02) for _ in range(4))]:
            victim = start(other(survivor_role))
            begin(*((survivor, victim) if survivor_role == "prefill" else (victim, survivor)), finish=delay_s > 0.01)
            time.sleep(delay_s)
            victim.kill()
            result = outcomes(survivor, report=True)
            assert result.ok + result.failed == TRANSFERS
            assert result.quarantined == 0
            assert result.gone_s < LOOP_BLOCKED_S
            assert result.settled_s < SETTLED_S
        healthy = start(other(survivor_role))
        begin(*((survivor, healthy) if survivor_role == "prefill" else (healthy, survivor)))
        for process in (survivor, healthy):
            assert outcomes(process, report=False).ok == TRANSFERS
        healthy.leave()
        survivor.leave()


@pytest.mark.parametrize("survivor_role", ["prefill", "decode"])
def test_between_hosts_a_death_is_noticed_without_being_told(survivor_role: Literal["prefill", "decode"]) -> None:
    with processes({"UCX_TLS": "tcp"}) as start:
        survivor, victim = start(survivor_role), start(other(survivor_role))
        begin(*((survivor, victim) if survivor_role == "prefill" else (victim, survivor)), finish=False)
        time.sleep(0.3)
        if (
            survivor_role == "prefill"
        ):  # nothing is pending: half of the pages has arrived, the rest is not computed yet
            victim.kill()
            time.sleep(0.3)
            result = outcomes(survivor, report=True)
        else:
            victim.kill()
            result = outcomes(survivor, report=False)
        assert (result.failed, result.quarantined) == (TRANSFERS, 0)
        assert result.settled_s < 2.0
        survivor.leave()


@pytest.mark.parametrize("survivor_role", ["prefill", "decode"])
def test_a_stopped_peer_is_given_up_and_cannot_touch_a_page_when_it_wakes(
    survivor_role: Literal["prefill", "decode"],
) -> None:
    """UCX never reports it; being told, the survivor does not wait for it, and the zombie finds nobody."""
    with processes() as start:
        survivor, zombie = start(survivor_role), start(other(survivor_role))
        begin(*((survivor, zombie) if survivor_role == "prefill" else (zombie, survivor)), finish=False)
        time.sleep(0.003)
        zombie.signal(signal.SIGSTOP)
        result = outcomes(survivor, report=True)
        assert (result.failed, result.quarantined) == (TRANSFERS, 0)
        assert result.gone_s < LOOP_BLOCKED_S
        assert result.settled_s < SETTLED_S
        survivor.say(Paint())
        assert survivor.answer(bool)
        zombie.signal(signal.SIGCONT)
        time.sleep(0.5)
        survivor.say(AskPainted())
        assert survivor.answer(bool)
        survivor.leave()


def test_killed_processes_leave_no_shared_memory() -> None:
    with processes() as start:
        prefill, decode = start("prefill"), start("decode")
        begin(prefill, decode, finish=False)
        time.sleep(0.003)
        pids = {prefill.pid, decode.pid}
        assert segments(pids)  # they do use it
        for process in (prefill, decode):
            process.signal(signal.SIGKILL)
        for process in (prefill, decode):
            process.kill()
        assert segments(pids) == []


def test_the_receiver_of_a_large_message_that_nobody_took_can_leave() -> None:
    """UCXX would wait for ever for the rest of it, from a sender that has closed its side."""
    with processes() as start:
        prefill, decode = start("prefill"), start("decode")
        begin(prefill, decode, finish=False)
        time.sleep(0.1)
        assert outcomes(decode, report=True).failed == TRANSFERS
        assert outcomes(prefill, report=True).failed == TRANSFERS
        prefill.leave()
        decode.leave()
