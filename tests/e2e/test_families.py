"""Do other architectures cross the hand-off exactly as well?

Tiny seeded-random models, real processes, real UCX: grouped queries, biases, QK-norm, sliding windows shorter than the
prompts, soft-capped logits, mixture of experts.
"""

from pathlib import Path

import pytest

from tests.support.families import split_equals_generate

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

FAMILIES = ["llama", "mistral_window", "qwen2_bias", "qwen3_qk_norm", "gemma2_softcap", "gemma3", "qwen3_moe"]


@pytest.mark.parametrize("family", FAMILIES)
def test_split_output_equals_generate(family: str, tmp_path: Path) -> None:
    split_equals_generate(family, tmp_path)
