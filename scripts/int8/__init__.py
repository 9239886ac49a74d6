"""What fewer bits cost and bring."""
