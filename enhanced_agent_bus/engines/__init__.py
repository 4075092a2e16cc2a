"""What decides: OPA in processes of its own (worker)."""
