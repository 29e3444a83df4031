"""The loss of one labelled sample: loss functions, class weights, feature statistics, and their numerical precision.

Pure functions of tensors and counts; imports nothing else from `train`.
"""
