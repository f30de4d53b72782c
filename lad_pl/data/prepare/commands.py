"""The commands of ``python -m lad_pl prepare``."""

from lad_pl.data.prepare.caption_sets import captions, coco, flickr8k, flickr30k
from lad_pl.data.prepare.custom_table import table
from lad_pl.data.prepare.mmiu import mmiu
from lad_pl.data.prepare.muirbench import muirbench

COMMANDS = {function.__name__: function for function in (coco, flickr8k, flickr30k, captions, mmiu, muirbench, table)}
"""Functions by command name; their parameters are the options."""
