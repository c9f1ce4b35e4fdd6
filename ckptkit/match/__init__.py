"""Engines shared by the verbs: digests, naming schemes."""
