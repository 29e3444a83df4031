"""Operations on pixels after the flip: colour, policies, blur, Cutout, on torch batches, the same on CPU and GPU.

Executes what `pipeline.views` planned. May import `pipeline.views` and nothing else from the pipeline.
"""
