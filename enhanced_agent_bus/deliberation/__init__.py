"""Held messages: who may say yes or no to what a rule holds."""
