"""The exit codes, and what every help says of them."""

from __future__ import annotations

DONE, BUG, BAD_INPUT, NOTHING_TO_DO, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143

HELP = """\b
Exit codes:
  0    done
  1    a bug of swcompile: please report it with what was printed
  2    bad usage or bad input: one message says what to do
  3    nothing can be rewired: the reason for each layer is printed
  130  interrupted (143: terminated): nothing is left half-written
"""
