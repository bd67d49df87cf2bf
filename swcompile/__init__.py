"""The compiler behind `swnet`: a stage a file, in the order in which data passes through them (see README.md)."""
