"""The parts of the programs that need more than one file, a folder each."""
