"""What ``python -m lad_pl prepare`` offers."""

from lad_pl.prepare.mmiu import mmiu
from lad_pl.prepare.muirbench import muirbench
from lad_pl.prepare.sets import captions, coco, flickr8k, flickr30k
from lad_pl.prepare.table import table

COMMANDS = {function.__name__: function for function in (coco, flickr8k, flickr30k, captions, mmiu, muirbench, table)}
"""The functions by their names; their parameters are the options."""
