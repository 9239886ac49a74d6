"""What a recovery costs beside the steps of a plain loop."""
