"""What `eab bench` runs: the governed workload, the rows of figures, and peers beside us in the same run.

Not here: how figures are asked for and shown (`cli/bench.py`). Nothing in the package imports this room.
"""
