"""What happens to pixels after the flip: colour, policies, blur, Cutout, on batches in torch, the same on CPU and GPU.

Executes what `pipeline.views` planned. May import `pipeline.views`, and of the rest of the pipeline nothing.
"""
