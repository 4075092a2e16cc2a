"""What is kept of messages, and for how long: legal holds, and what may be erased."""
