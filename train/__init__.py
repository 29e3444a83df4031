"""Models, methods, the loop, evaluation and reports. Reads no tar file."""
