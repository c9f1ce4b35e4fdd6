"""Fuzzing of every parser: `python -m fuzz TARGET…` needs nothing, `python -m fuzz.guided TARGET` needs atheris."""
