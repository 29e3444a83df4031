"""The training loop: steps, their capture as CUDA graphs, signals, meters and the progress line.

May import `train.methods`, `train.checkpoints` and the layers below; independent of specific data sets and networks.
"""
