"""The planner on networks of other people."""
