"""One file a command: `python -m experiments.NAME --help`."""

import psgjax as psgjax  # first: while the rest is imported, Ctrl-C is one line already
