"""Networks and their heads, by name: CIFAR ResNets, timm's models, and methods' own networks.

May import `train.losses` for its precision, and nothing else from `train`.
"""
