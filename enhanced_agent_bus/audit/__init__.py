"""The read side of the log: verifying it, and reading it without a running bus. Nothing here writes."""
