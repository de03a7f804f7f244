"""How does a worker get its engine?

Off the loop: loading takes seconds, and a worker tells of its progress meanwhile. The fake engine is opened without
importing torch.
"""

import asyncio
from collections.abc import Callable

from engine.config import AnyEngineConfig, EngineConfig, FakeEngineConfig
from engine.fake import FakeEngine, fake_layout
from engine.port import EnginePort
from engine.thread import EngineThread


async def open_engine(
    config: AnyEngineConfig, thread: EngineThread, on_progress: Callable[[str, float | None], None]
) -> EnginePort:
    """Open the engine that `config` describes on the engine thread; `on_progress` is called on the loop thread.

    Raises:
        engine.support.UnsupportedModel, engine.loading.LoadError: with what to change.
    """
    loop = asyncio.get_running_loop()

    def report(stage: str, fraction: float | None) -> None:
        loop.call_soon_threadsafe(on_progress, stage, fraction)

    engine = await thread.run(_open, config, report)
    if isinstance(config, EngineConfig) and config.device != "cpu":
        from engine import core  # noqa: PLC0415 - as below

        core.make_context_current(config.device)  # here, on the loop thread: UCX moves device memory from it
        await thread.outcome(core.make_context_current, config.device)  # where it waits for events
    return engine


def _open(config: AnyEngineConfig, report: Callable[[str, float | None], None]) -> EnginePort:
    match config:
        case FakeEngineConfig():
            layout = fake_layout(config.page_tokens, config.kv_bytes_per_token)
            return FakeEngine(
                layout,
                config.pool_pages,
                weight=config.weight,
                max_model_len=config.max_model_len,
                step_s=config.step_s,
                token_s=config.token_s,
            )
        case EngineConfig():
            report("importing torch", None)
            from engine import core  # noqa: PLC0415 - torch takes seconds to import and a fake engine needs none of it

            return core.open_engine(config, report)
