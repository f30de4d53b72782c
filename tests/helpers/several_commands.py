"""Runs commands of lad_pl one after the other, given as JSON; the processes that ddp launches do the same.

It stops after the first one that fails, and prints ``BEGINS`` on stderr before each.
"""

import json
import sys

from lad_pl.cli import main

BEGINS = "The next command begins."

if __name__ == "__main__":
    for command in json.loads(sys.argv[1]):
        print(BEGINS, file=sys.stderr, flush=True)
        code = main(command)
        if code:
            sys.exit(code)
