"""Runs commands of lad_pl one after the other, given as JSON; the processes that ddp launches do the same."""

import json
import sys

from lad_pl.cli import main

if __name__ == "__main__":
    for command in json.loads(sys.argv[1]):
        code = main(command)
        if code:
            sys.exit(code)
