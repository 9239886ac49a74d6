"""What dendrites cost in time and memory."""
