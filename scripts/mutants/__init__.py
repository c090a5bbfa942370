"""Mutation testing: small faults planted in the core, one at a time, and whether a test fails.

sample.py    which faults there are, and a seeded choice among them
tree.py      a copy of one commit, in which they are planted
reached.py   which tests run which lines, and how long they take
tests.py     runs chosen tests in a process of their own
verdicts.py  what was found so far, kept in a file, and its summary
"""
