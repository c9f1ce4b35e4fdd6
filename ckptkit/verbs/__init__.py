"""The verbs: one module each, values in, a value out; a verb never imports a verb."""
