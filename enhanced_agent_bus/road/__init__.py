"""The road, station by station: a message is found a recipient, judged, recorded, carried, and rescued.

`bus.py` is its public face. What the stations share is on the desk (`desk.py`); each of them is a file:
sending (find, judge, record), mailroom and carriage (carry), replies, rescue, endings; and charter, for constitutions.
What follows a durable record happens in the record's own callback, not in the sender's task: a sender that is
cancelled has either sent or not.
"""
