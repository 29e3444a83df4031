"""The training loop: steps, their capture as CUDA graphs, signals, meters and the progress line.

May import `train.methods`, `train.checkpoints` and what lies below them; knows no data set and no network by name.
"""
