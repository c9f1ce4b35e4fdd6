"""Limits on everything that a small file can inflate, in one frozen object."""

from dataclasses import dataclass

MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Budgets:
    """How much a file may ask for before it is refused. Counts are of things, sizes are in bytes.

    Every limit is far above what real checkpoints need and far below what exhausts a machine.
    """

    opcodes: int = 60_000_000  # of one pickle stream; a tensor takes about 40
    memo: int = 1_000_000  # memo entries of one pickle stream out of the order in which pickle numbers them
    nesting: int = 1_000  # containers within containers, subgraphs within subgraphs
    integer_bytes: int = 64  # one pickled integer (int64 needs 9); the value of a longer one is not shown
    string_bytes: int = 256 * MB  # one string or byte string inside a pickle
    entries: int = 2_000_000  # archive members, shards, graph nodes
    header_bytes: int = 100 * MB  # a safetensors header (the reference's own limit)
    index_bytes: int = 100 * MB  # an index.json or config.json
    pickle_bytes: int = 1_000 * MB  # one pickle stream, inflated
    inflate_ratio: int = 1_100  # inflated : deflated (DEFLATE itself tops out near 1,032)
    inflate_bytes: int = 64_000 * MB  # one inflated archive member
    unpacked_bytes: int = 128 * MB  # what a scan holds of compressed members, together


DEFAULT_BUDGETS = Budgets()
