"""Other toolkits, beside our own arms."""
