"""May it travel? The chain of gates every message passes, each time it moves."""
