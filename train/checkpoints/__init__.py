"""Weight files: this project's checkpoints, and those released with the papers' code.

May import `train.models` and `train.methods`; the loop and the evaluation are above it.
"""
