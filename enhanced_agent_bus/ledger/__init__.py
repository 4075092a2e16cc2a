"""The write side of the log: records, SQLite with group commit, Merkle tree, checkpoints.

Not here: what the fields of a record mean (the bus makes them) and reading a log back (audit).
"""
