"""How does a long step at start say how far it is?

Long steps take an `OnProgress` and call it often; whoever shows it decides how often to draw.
"""

from collections.abc import Callable
from enum import StrEnum


class Stage(StrEnum):
    WAITING = "waiting for another pull"
    DOWNLOADING = "downloading"
    EXTRACTING = "extracting"
    CONVERTING = "converting"


OnProgress = Callable[[Stage, int, int | None], None]
"""Stage, bytes done, bytes in all (None where that is not known)."""


def silent(stage: Stage, done: int, total: int | None) -> None:
    """An `OnProgress` that shows nothing."""
