"""Does UCX get the transports that the pages need, whatever the operator names?"""

import subprocess
import sys

import pytest

from runtime.buffers import MemoryKind
from tests.support.tree import ROOT
from transport.ucx import configuration


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UCX_TLS", "UCX_NET_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("memory", MemoryKind)
def test_everything_but_shared_memory_unless_somebody_chooses(memory: MemoryKind) -> None:
    """Which has cuda_copy and cuda_ipc in it, where there is a GPU."""
    assert configuration(memory)["TLS"] == "^sm"


@pytest.mark.parametrize(
    ("named", "given"),
    [
        ("tcp", "tcp,cuda_copy,cuda_ipc"),
        ("tcp,cuda_copy", "tcp,cuda_copy,cuda_ipc"),
        ("tcp,cuda", "tcp,cuda"),
        ("all", "all"),
        ("^sm,cuda_ipc", "^sm,cuda_ipc"),
    ],
)
def test_pages_of_a_gpu_bring_its_transports_with_them(monkeypatch: pytest.MonkeyPatch, named: str, given: str) -> None:
    monkeypatch.setenv("UCX_TLS", named)
    assert configuration(MemoryKind.CUDA)["TLS"] == given
    assert configuration()["TLS"] == named


@pytest.mark.parametrize("named", ["^cuda", "^sm,cuda_copy"])
def test_leaving_out_what_touches_gpu_memory_is_refused(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("UCX_TLS", named)
    with pytest.raises(ValueError, match="leaves out cuda_copy"):
        configuration(MemoryKind.CUDA)


@pytest.mark.parametrize(("chosen", "cache"), [(None, "n"), ("y", "y")])
def test_ucx_does_not_trust_its_cache_of_gpu_memory(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, cache: str
) -> None:
    """It reads that variable when it is loaded; UCXX sets it a moment later."""
    monkeypatch.delenv("UCX_MEMTYPE_CACHE", raising=False)
    if chosen is not None:
        monkeypatch.setenv("UCX_MEMTYPE_CACHE", chosen)
    program = (
        "import ctypes, transport.ucx\n"
        "value = ctypes.create_string_buffer(16)\n"
        "ctypes.CDLL('libucs.so.0').ucs_global_opts_get_value(b'MEMTYPE_CACHE', value, len(value))\n"
        "print(value.value.decode())\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == cache
