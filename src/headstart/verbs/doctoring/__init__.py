"""The parts of an examination: what is found in the data, how fast they are, what to do with them, and pictures."""
