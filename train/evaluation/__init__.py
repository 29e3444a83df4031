"""Numbers and pictures of a trained network: scores, post-hoc corrections, and what a run leaves to read.

May import everything of `train` but `train.run`.
"""
