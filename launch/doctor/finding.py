"""What does `kvrelay doctor` say about one thing?

Pure. A finding states a fact of this machine and, unless it is good, what to do about it.
"""

from enum import Enum

from msgspec import Struct

from launch.doctor.facts import Facts, Variable


class Level(Enum):
    OK = "ok"
    INFO = "info"  # worth knowing, nothing to do
    WARNING = "warning"  # works, but slowly, or not for everything
    ERROR = "error"  # keeps kvrelay from working


class Finding(Struct, frozen=True):
    level: Level
    topic: str
    text: str
    advice: str | None = None


def ok(topic: str, text: str) -> Finding:
    return Finding(Level.OK, topic, text)


def info(topic: str, text: str, advice: str | None = None) -> Finding:
    return Finding(Level.INFO, topic, text, advice)


def warning(topic: str, text: str, advice: str) -> Finding:
    return Finding(Level.WARNING, topic, text, advice)


def error(topic: str, text: str, advice: str) -> Finding:
    return Finding(Level.ERROR, topic, text, advice)


def variable(facts: Facts, name: str) -> str | None:
    """The value of an environment variable, if it is set."""
    return next((found.value for found in facts.environment if found.name == name), None)


def asks_for_shared_memory(variables: tuple[Variable, ...]) -> bool:
    """Whether `UCX_TLS` brings back the transports that do not survive the death of a peer (ADR-0013)."""
    chosen = next((found.value for found in variables if found.name == "UCX_TLS"), "")
    words = [word.strip().lower() for word in chosen.removeprefix("^").split(",")]
    named = bool({"all", "sm", "shm", "mm", "posix", "sysv", "cma", "knem", "xpmem"} & set(words))
    return bool(chosen) and (not {"all", "sm", "shm"} & set(words) if chosen.startswith("^") else named)


def gigabytes(nbytes: float) -> str:
    """1.23 GB or 45 MB: whatever is easier to read."""
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"
