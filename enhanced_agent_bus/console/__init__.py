"""The console: one local web page on a home, for an auditor and an operator.

It reads what reading commands read and does what `eab dlq replay` does, through the same functions; it decides nothing
by itself. Only `cli/console.py` imports it; starlette and uvicorn come with the extra `console`.
"""
