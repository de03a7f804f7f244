"""What do parts of the GPU check do that end badly?

Modules of parts are named, so each way to end is a function of its own, chosen by the device that a test gives.
"""

import os
import signal
import sys
import time

from bench.gpu.parts import Settings, Tell
from bench.rows import summarise


def run(settings: Settings, tell: Tell) -> None:
    """Tell something, then end as `settings.device` says."""
    tell(summarise("crashing", "measured before", [1.0], unit="ms", limited_by="nothing"), note="still here")
    sys.stdout.write("last words\n")
    sys.stdout.flush()
    match settings.device:
        case "abort":
            os.kill(os.getpid(), signal.SIGABRT)
        case "raise":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        case "hang":
            time.sleep(600)
        case "exit":
            sys.exit(3)
