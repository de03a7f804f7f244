"""Where do the tools live?

Each in a virtual environment of its own below `.compat/`, because they pin what kvrelay needs in other versions. Made
once, and again when the file that pins it has changed.
"""

import subprocess
import sys
from pathlib import Path

from bench.compat.tool import Tool
from bench.machine import ROOT

FOLDER = ROOT / ".compat"


def make(tool: Tool) -> Path:
    """The folder of the tool's programs.

    Raises:
        subprocess.CalledProcessError: pip failed; it has said why.
    """
    home = FOLDER / tool.name
    pins = Path(__file__).with_name(f"constraints-{tool.name}.txt")
    stamp, wanted = home / "made-of", f"{tool.requirement}\n{pins.read_text()}"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"making {home.relative_to(ROOT)} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        python = home / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", pins, tool.requirement], check=True)
        stamp.write_text(wanted)
    return home / "bin"


def version(tool: Tool, programs: Path) -> str:
    code = f"import importlib.metadata as m; print(m.version({tool.package!r}))"
    done = subprocess.run([programs / "python", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
