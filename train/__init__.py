"""Models, methods, the training loop, evaluation and reports. Does not read tar files."""
