"""The control socket: how a command reaches the bus of another process that has the home open."""
