"""How does a process get its configuration?

The launcher writes one JSON file per process and names it on the command line; it is read once, checked against the
process's frozen Struct, and never changed. Nothing else reads the environment or the command line.
"""

import sys
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


def read(path: Path, type_: type[T]) -> T:
    """
    Raises:
        ValueError: the file is not such a configuration; the text names the field.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=type_)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from error


def write(path: Path, config: msgspec.Struct) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2))


def from_command_line(type_: type[T]) -> T:
    """The configuration named by the only argument; ends the process with a usage line otherwise."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} CONFIG.json")
    try:
        return read(Path(sys.argv[1]), type_)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
