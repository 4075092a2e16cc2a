"""What nodes and agents elsewhere write to each other: signed letters, made and read. No I/O, no clock."""
