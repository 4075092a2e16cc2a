"""If delivery failed: when to try again, and when to stop."""
