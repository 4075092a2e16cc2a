"""For policy authors: check, test and explain a constitution, on top of the policy worker.

Not here: how it is shown (cli), and activation itself (bus).
"""
