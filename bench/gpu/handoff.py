"""What does it cost that one process computes the prompt and another the answer, when both share a GPU?

`bench.handoff` on a cell with the model of this check. The two workers share one GPU in turns of its scheduler, so what
overlaps on two GPUs does not overlap here: the gap is an upper bound.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

from bench import handoff
from bench.gpu import shapes
from bench.gpu.parts import Settings, Tell
from launch.config import CellOptions

_PROMPT_TOKENS = (512, 4096)
_ROUNDS = 5


def run(settings: Settings, tell: Tell) -> None:
    with TemporaryDirectory() as directory:
        options = cell_options(settings, shapes.write(settings.shape, Path(directory)))
        plan = handoff.Plan(
            prompt_tokens=_PROMPT_TOKENS if settings.on_gpu else (16, 48),
            rounds=_ROUNDS if settings.on_gpu else 1,
            token_ids=range(settings.shape.vocab),
        )
        tell(*uvloop.run(handoff.measured(options, plan, show=print)))


def cell_options(settings: Settings, model: Path) -> CellOptions:
    """One prefill and one decode worker on the device."""
    return CellOptions(
        model_dir=str(model),
        model_name=settings.shape.name,
        devices=(settings.device,),
        dtype="bfloat16" if settings.on_gpu else "float32",
        load_format="dummy",
        prefill_kv_tokens=16_384 if settings.on_gpu else 1024,
        decode_kv_tokens=16_384 if settings.on_gpu else 1024,
    )
