"""How does a program that is not ours die with the benchmark that started it?

`python -m bench.tether PARENT_PID PROGRAM ARGUMENT...` asks the kernel for it and becomes the program.
"""

import os
import sys

from runtime.process import die_with_parent


def main() -> None:
    parent_pid, *command = sys.argv[1:]
    die_with_parent(int(parent_pid))
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
