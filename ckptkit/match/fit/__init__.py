"""How a checkpoint fits a target: what differs, why, under which names it would fit, what mends it, and making it fit.

Everything here looks at names, dtypes and shapes only.
"""
