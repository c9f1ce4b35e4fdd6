"""Running two models on the same inputs and comparing what they give: the engine of `prove`.

`signature` reads from a graph what its inputs may be, `samples` makes inputs of that kind, `runners` runs models on
them, `compare` holds the outputs against each other. onnxruntime and torch are loaded by `runners` alone.
"""
