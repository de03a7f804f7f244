"""Which files make up the project?"""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "bench",
    "coordinator",
    "decode_worker",
    "engine",
    "launch",
    "prefill_worker",
    "runtime",
    "transport",
)


def project_files(suffix: str = "") -> list[Path]:
    """What git tracks or would track, relative to `ROOT`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = (Path(name) for name in listed.split("\0") if name.endswith(suffix) and name)
    return sorted(path for path in paths if (ROOT / path).is_file())
