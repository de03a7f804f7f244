"""Do two workers that share a GPU answer exactly what one process on the CPU answers?

Part of `make gpu-check`: a machine without a GPU skips it.
"""

from pathlib import Path

import pytest
import torch

from tests.support.families import split_equals_generate

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

FAMILIES = ["llama", "mistral_window", "qwen3_qk_norm", "gemma2_softcap"]


@pytest.mark.parametrize("family", FAMILIES)
def test_split_output_equals_generate(family: str, tmp_path: Path) -> None:
    split_equals_generate(family, tmp_path, "cuda:0")
