"""A small language model of real text, at half and a quarter of its parameters."""
