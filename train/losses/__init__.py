"""What one labelled sample costs: loss functions, class weights, statistics of features, and the precision of all that.

Pure functions of tensors and counts; imports nothing else of `train`.
"""
