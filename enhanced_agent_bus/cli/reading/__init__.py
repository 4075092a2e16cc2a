"""What commands read in a home, read-only: without a constitution, a bus or a new file."""
