"""prove: do two models give the same outputs? See `ckptkit.match.proof.proving`, which convert and export use too."""

from ckptkit.match.proof.proving import Proof, Run, prove

__all__ = ["Proof", "Run", "prove"]
