"""A trained network for use elsewhere: timm's folder layout, ONNX, torch.export, a model card.

May import everything of `train` but `train.run`. What an export writes is loaded again and compared with the network
before the export is called done.
"""
