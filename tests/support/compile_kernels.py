"""Do the kernels compile for a Hopper GPU, on a machine without one?

A program of its own, because Triton either compiles or interprets for as long as a process lives. It goes through the
launchers with CPU tensors and compiles where they would launch; the result is one JSON object per kernel on stdout.
"""

import json
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.cuda.kernels import gated, kv_write, paged_decode, paged_prefill, rms_norm

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64"}


@dataclass
class Compiled:
    """Stands where a kernel was: a launch compiles it as Triton's own launcher would."""

    kernel: Any
    name: str

    def __getitem__(self, grid: tuple[int, ...]) -> "Compiled":
        return self

    def __call__(self, *args: object, num_warps: int = 4, num_stages: int = 3, **constants: object) -> None:
        types: dict[str, str] = {}
        values: dict[str, object] = {}
        divisible: dict[tuple[int, ...], list[list[object]]] = {}
        given = dict(zip(self.kernel.arg_names, args, strict=False)) | constants
        for place, name in enumerate(self.kernel.arg_names):
            value = given[name]
            if name.isupper() or (isinstance(value, int) and value == 1):
                types[name], values[name] = "constexpr", value
                continue
            types[name] = TYPES[value.dtype] if isinstance(value, Tensor) else "fp32"
            if isinstance(value, int):
                types[name] = "i32"
            if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
                divisible[place,] = [["tt.divisibility", 16]]
        compiled = triton.compile(
            ASTSource(self.kernel, types, values, divisible),
            target=HOPPER,
            options={"num_warps": num_warps, "num_stages": num_stages},
        )
        instructions = compiled.asm["ptx"]
        found = {
            "kernel": self.name,
            "shared_bytes": compiled.metadata.shared,
            "matrix_instructions": instructions.count("wgmma.mma_async") + instructions.count("mma.sync"),
            "warp_group_instructions": instructions.count("wgmma.mma_async"),
            "copies_of_16_bytes": instructions.count("cp.async.cg.shared.global"),
        }
        sys.stdout.write(json.dumps(found) + "\n")


def replace_kernels(module: ModuleType, *names: str) -> None:
    for name in names:
        setattr(module, name, Compiled(getattr(module, name), name))


def compile_all() -> None:
    """For heads as a model of 8 billion parameters has them: 32 query heads, 8 kv_heads of 128, pages of 16 tokens."""
    fused = torch.empty(4, 48, 128, dtype=torch.bfloat16)
    query, key, value = fused[:, :32], fused[:, 32:40], fused[:, 40:]
    pool = torch.empty(4, 2, 2, 16, 8, 128, dtype=torch.bfloat16)
    keys, values = pool[:, 1, 0], pool[:, 1, 1]
    table, lengths = torch.zeros(4, 64, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    out = torch.empty(4, 32, 128, dtype=torch.bfloat16)
    workspace = paged_decode.DecodeWorkspace.make(4, 32, 128, 8, torch.device("cpu"))
    slots, cos = torch.zeros(4, dtype=torch.int64), torch.empty(4, 128, dtype=torch.bfloat16)
    hidden, weight = torch.empty(1, 4, 4096, dtype=torch.bfloat16), torch.empty(4096, dtype=torch.bfloat16)
    paged_decode.decode_attention(
        query, keys, values, table, lengths, out, workspace, scale=0.1, window=None, softcap=None
    )
    paged_prefill.prefill_attention(
        query,
        keys,
        values,
        table,
        torch.zeros(5, dtype=torch.int32),
        lengths,
        out,
        max_tokens=2048,
        scale=0.1,
        window=4096,
        softcap=50.0,
    )
    kv_write.write(key, value, keys, values, slots)
    kv_write.rotate_and_write(query, key, value, cos, cos, keys, values, slots)
    rms_norm.add_rms_norm(hidden, hidden, weight, 1e-5)
    gated.silu_and_mul(torch.empty(4, 28672, dtype=torch.bfloat16))


if __name__ == "__main__":
    replace_kernels(paged_decode, "_attend_split", "_join_splits")
    replace_kernels(paged_prefill, "_attend_chunk")
    replace_kernels(kv_write, "_write", "_rotate_and_write")
    replace_kernels(rms_norm, "_norm")
    replace_kernels(gated, "_silu_and_mul")
    compile_all()
