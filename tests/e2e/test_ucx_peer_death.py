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
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import pytest

from tests.support import ucx_peer
from tests.support.ucx_peer import AskPainted, Command, Finish, Leave, Outcomes, Paint, PeerGone, Start
from transport.messages.common import KvPeer

pytestmark = pytest.mark.e2e

T = TypeVar("T")
Role = Literal["prefill", "decode"]
TRANSFERS = 4
LOOP_BLOCKED_S = 0.1
SETTLED_S = 0.9  # less than the grace of the port: UCX has let go by itself

_numbers = itertools.count(1)


class Process:
    """A `tests.support.ucx_peer`."""

    def __init__(self, role: Role) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=ucx_peer.main, args=(role, next(_numbers), theirs), daemon=True)
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
def processes() -> Iterator[Callable[[Role], Process]]:
    """A function that starts one; all are killed at the end."""
    made: list[Process] = []

    def start(role: Role) -> Process:
        made.append(Process(role))
        return made[-1]

    try:
        yield start
    finally:
        for process in made:
            process.kill()


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


def other(role: Role) -> Role:
    return "decode" if role == "prefill" else "prefill"


def couple(survivor: Process, peer: Process, role: Role) -> tuple[Process, Process]:
    """The prefill and the decode process of the two."""
    return (survivor, peer) if role == "prefill" else (peer, survivor)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_the_survivor_of_many_deaths_goes_on(role: Role) -> None:
    """Peers are killed at several moments of four transfers at once, and each time the next one lives."""
    draw = random.Random(role)
    with processes() as start:
        survivor = start(role)
        for delay_s in [0.0, *(draw.uniform(0, 0.03) for _ in range(3))]:
            victim = start(other(role))
            begin(*couple(survivor, victim, role), finish=delay_s > 0.01)
            time.sleep(delay_s)
            victim.kill()
            result = outcomes(survivor, report=True)
            assert result.ok + result.failed == TRANSFERS
            assert result.quarantined == 0
            assert result.gone_s < LOOP_BLOCKED_S
            assert result.settled_s < SETTLED_S
            healthy = start(other(role))
            begin(*couple(survivor, healthy, role))
            assert outcomes(survivor, report=False).ok == outcomes(healthy, report=False).ok == TRANSFERS
            healthy.leave()
        survivor.leave()


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_death_in_mid_transfer_is_noticed_without_being_told(role: Role) -> None:
    """When half of the pages are there; of the others the prefill worker's are under way, to a process that stands."""
    with processes() as start:
        survivor, victim = start(role), start(other(role))
        begin(*couple(survivor, victim, role), finish=False)
        time.sleep(0.5)
        if role == "prefill":
            victim.signal(signal.SIGSTOP)
            survivor.say(Finish())
            assert survivor.answer(bool)
            time.sleep(0.1)
        victim.kill()
        result = outcomes(survivor, report=False)
        assert (result.failed, result.quarantined) == (TRANSFERS, 0)
        assert result.settled_s < SETTLED_S
        survivor.leave()


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_stopped_peer_is_given_up_and_cannot_touch_a_page_when_it_wakes(role: Role) -> None:
    """UCX never reports it. Waiting for it costs no CPU, giving it up takes no time, and then it finds nobody."""
    with processes() as start:
        survivor, zombie = start(role), start(other(role))
        begin(*couple(survivor, zombie, role), finish=False)
        time.sleep(0.005)
        zombie.signal(signal.SIGSTOP)
        time.sleep(0.2)
        before_s = cpu_seconds(survivor)
        time.sleep(1.0)
        assert cpu_seconds(survivor) - before_s < 0.05
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


def cpu_seconds(process: Process) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_killed_processes_leave_no_shared_memory() -> None:
    with processes() as start:
        prefill, decode = start("prefill"), start("decode")
        begin(prefill, decode, finish=False)
        time.sleep(0.005)
        for process in (prefill, decode):
            process.kill()
        assert segments({prefill.pid, decode.pid}) == []


def test_who_holds_messages_that_nobody_took_can_leave() -> None:
    """UCXX would wait for ever for the rest of them, from a sender that has closed its side."""
    with processes() as start:
        prefill, decode = start("prefill"), start("decode")
        begin(prefill, decode, finish=False)
        assert outcomes(decode, report=True).failed == TRANSFERS
        time.sleep(0.2)
        assert outcomes(prefill, report=True).failed == TRANSFERS
        prefill.leave()
        decode.leave()
