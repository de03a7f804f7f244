"""How does a prefill worker process start?

`python -m prefill_worker CONFIG.json`, by the launcher or by hand.
"""

import asyncio
import os

from engine.open import open_engine
from engine.port import model_info, pool_info
from engine.thread import EngineThread
from prefill_worker.config import PrefillConfig
from prefill_worker.worker import PrefillWorker
from runtime import config, logs, process
from runtime.clock import SystemClock
from transport.control import new_context
from transport.kv import KvPort
from transport.membership import Membership
from transport.messages.common import PROTOCOL_VERSION
from transport.messages.worker import Hello
from transport.ucx import UcxWire


async def _main(settings: PrefillConfig, stop: asyncio.Event) -> None:
    clock = SystemClock()
    context = new_context()
    membership = Membership(context, settings.coordinator, settings.worker_id, clock)
    thread = EngineThread()
    engine = await open_engine(settings.engine, thread, membership.loading)
    membership.loading("opening UCX")
    kv = KvPort(
        UcxWire(engine.regions((0,))[0].kind),
        worker_id=settings.worker_id,
        epoch=process.new_epoch(),
        fingerprint=engine.layout.fingerprint,
        host_id=process.host_id(),
        clock=clock,
        timeout_s=settings.transfer_timeout_s,
    )
    worker = PrefillWorker(engine, thread, kv, membership, clock, settings)
    hello = Hello(
        protocol=PROTOCOL_VERSION,
        role="prefill",
        peer=kv.peer,
        pool=pool_info(engine),
        model=model_info(engine),
        max_batch=settings.max_prompts,
        pid=os.getpid(),
    )
    await worker.run(hello, stop)
    kv.close()
    membership.close()
    context.term()
    thread.close()


def main() -> None:
    settings = config.from_command_line(PrefillConfig)
    logs.configure(settings.worker_id, settings.log_level)
    process.die_with_parent(settings.parent_pid)
    process.pin(settings.cores)
    process.keep_freed_memory()
    process.run(lambda stop: _main(settings, stop))


if __name__ == "__main__":
    main()
