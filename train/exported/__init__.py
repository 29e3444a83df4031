"""Exporting a trained network: timm's folder layout, ONNX, torch.export, a model card.

May import everything in `train` except `train.run`. Every exported file is loaded again and compared with the network
before the export counts as done.
"""
