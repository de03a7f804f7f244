"""Do the kernels compile for a Hopper GPU? The interpreter does not see what only the compiler refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.tree import ROOT

SHARED_MEMORY = 227 << 10
"""Of a Hopper multiprocessor, for one program."""


def test_every_kernel_compiles_for_hopper(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.compile_kernels"],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found = {line["kernel"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == {
        "_attend_split",
        "_join_splits",
        "_attend_chunk",
        "_write",
        "_rotate_and_write",
        "_norm",
        "_silu_and_mul",
    }
    assert max(line["shared_bytes"] for line in found.values()) <= SHARED_MEMORY
    # Keys come to shared memory in asynchronous copies of 16 bytes, and are multiplied by the matrix units.
    for name in ("_attend_split", "_attend_chunk"):
        assert found[name]["copies_of_16_bytes"] > 0
        assert found[name]["matrix_instructions"] > 0
    assert 2 * found["_attend_split"]["shared_bytes"] <= SHARED_MEMORY
    assert found["_attend_chunk"]["warp_group_instructions"] > 0
