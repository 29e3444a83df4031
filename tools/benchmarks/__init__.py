"""What `python -m tools.bench` measures, one module a subject."""
