"""Renaming: from one naming scheme to another."""
