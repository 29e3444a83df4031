"""Files with weights: those of this project, and those that the papers' programs released.

May import `train.models` and `train.methods`; the loop and the evaluation stand above.
"""
