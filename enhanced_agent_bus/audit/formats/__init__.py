"""The log in other people's formats. Pure: a row of the log in, one line out; Parquet alone writes a file.

`jsonl` is no format of this room: it is the stored bytes. Not here: where rows come from, and what is masked.
"""
