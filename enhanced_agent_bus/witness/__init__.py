"""Witnesses: places outside the home that are given the log's signed checkpoints.

A log alone cannot show that its end was cut off, or that its owner wrote it anew; a checkpoint kept elsewhere can.
One module for each kind of place, and the keeper, which brings them the newest checkpoint, never on the road.
"""
