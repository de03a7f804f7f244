"""How is a grammar tried that may be made to crash or hang whoever builds it?

In a process that may die (ADR-0014). llguidance bounds its work, but not all of it: a chain of 4,000 references
overflows the stack, an intersection of 32 regular expressions takes minutes. The coordinator tries every grammar here
before it sends it to a worker. The process starts with the first grammar and is started again when one has ended it.

The trial has a small stack and little time, so what passes has room to spare on a worker's engine thread.
"""

import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import msgspec

from engine.grammar import GrammarCompiler, UnusableTokenizer
from runtime import process

_DEADLINE_S = 0.5
_START_S = 60.0
_STACK_BYTES = 1 << 20
"""An eighth of what a thread usually has."""


class GrammarTrial:
    """Any thread may call `check`; one grammar is tried at a time."""

    def __init__(self, tokenizer_json: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        ids = ",".join(map(str, eos_token_ids))
        self.arguments = [str(tokenizer_json), str(vocab_size), ids, str(os.getpid())]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., GrammarTrial] | None = None

    def check(self, grammar: str) -> str | None:
        """Why the grammar cannot be used, in words for who wrote it; None if it can. Blocks, for seconds at worst."""
        with self._lock:
            while not self._ask(grammar):
                self._start()
                unusable = self._answer(_START_S)
                if unusable is not None:
                    self._stop()
                    return unusable
            return self._answer(_DEADLINE_S)

    def _start(self) -> None:
        self._stop()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engine.grammar_trial", *self.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a crash would quote the grammar
            bufsize=0,
        )
        self._end = weakref.finalize(self, _kill, self._process)

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._process = None

    def _ask(self, grammar: str) -> bool:
        """False where no process takes it."""
        pipe = self._process.stdin if self._process is not None else None
        rest = msgspec.json.encode(grammar) + b"\n"
        try:
            while pipe is not None and rest:
                rest = rest[pipe.write(rest) :]
        except BrokenPipeError:
            return False
        return pipe is not None

    def _answer(self, limit_s: float) -> str | None:
        """One line from the process; without one in time it is ended."""
        deadline = time.monotonic() + limit_s
        pipe = self._process.stdout if self._process is not None else None
        line = b""
        while pipe is not None and not line.endswith(b"\n"):
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            part = pipe.read(1 << 16) if ready else b""
            if not part:
                self._stop()
                return "it is nested too deeply to build" if ready else f"it takes more than {limit_s:g} s to build"
            line += part
        return msgspec.json.decode(line, type=str | None)


def _kill(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def _serve(compiler: GrammarCompiler) -> None:
    for line in sys.stdin.buffer:
        _reply(compiler.check(msgspec.json.decode(line, type=str)))


def _reply(error: str | None) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(error) + b"\n")
    sys.stdout.buffer.flush()


def main(arguments: Sequence[str]) -> None:
    tokenizer_json, vocab_size, eos, parent_pid = arguments
    process.die_with_parent(int(parent_pid))
    try:
        compiler = GrammarCompiler(Path(tokenizer_json), int(vocab_size), [int(token) for token in eos.split(",")])
    except UnusableTokenizer as error:
        _reply(str(error))
        return
    _reply(None)
    threading.stack_size(_STACK_BYTES)
    worker = threading.Thread(target=_serve, args=(compiler,))
    worker.start()
    worker.join()


if __name__ == "__main__":
    main(sys.argv[1:])
