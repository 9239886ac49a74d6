"""The picture of the README, from the lines of other benchmarks."""
