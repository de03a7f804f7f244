"""How does a command end when the person at the terminal has to change something?"""

from typing import NoReturn

from rich.console import Console
from rich.markup import escape


def end(message: str, code: int = 1) -> NoReturn:
    """Errors that the person at the terminal can put right have no traceback."""
    Console(stderr=True, emoji=False).print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise SystemExit(code)
