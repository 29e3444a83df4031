"""Networks and their heads, by name: CIFAR ResNets, timm's models, and those that a method brings.

May import `train.losses` for its precision, and nothing else of `train`.
"""
