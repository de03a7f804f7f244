"""How does one command check the GPU path of this machine?

`python -m bench.gpu`, which is `make gpu-check`. This file runs before it is known whether anything can be imported.
"""

import sys

from bench.gpu import packages


def main() -> None:
    absent = packages.missing()
    if absent:
        print(packages.message(packages.distributions(absent), packages.pins()), file=sys.stderr)
        sys.exit(2)
    from bench.gpu.command import app  # noqa: PLC0415 - it needs what may be missing

    app()


if __name__ == "__main__":
    main()
