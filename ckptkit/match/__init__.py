"""Engines shared by the verbs: identity, naming schemes, comparing values, how a checkpoint fits, the finder."""
