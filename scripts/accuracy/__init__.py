"""Accuracy of small networks at one size and one number of steps."""
