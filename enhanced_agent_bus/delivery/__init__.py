"""Carry it: a bounded mailbox an agent, and the running of handlers."""
