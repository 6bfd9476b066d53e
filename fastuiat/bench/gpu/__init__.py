"""`fastuiat bench gpu`: what a quarter of an hour on a GPU can show, in order of worth, and kept.

A GPU is lent for minutes and may be taken away in the middle. Each stage is a process of its own
with a share of the time, and what it came to is on the disk, in a folder small enough to be carried
away, before the next begins; called again with that folder the rest is done.
"""
