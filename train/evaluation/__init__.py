"""Numbers and figures for a trained network: scores, post-hoc corrections, and a run's reports.

May import everything in `train` except `train.run`.
"""
