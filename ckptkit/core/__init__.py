"""The floor everything stands on: dtypes, tensors, the tensor graph, files, plans, findings and errors."""
