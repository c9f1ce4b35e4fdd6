"""Engines shared by the verbs: identity, naming schemes, comparison of values, how a checkpoint fits, content finding."""
