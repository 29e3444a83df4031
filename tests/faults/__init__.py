"""Faults made on purpose: processes are really killed, disks really fill up, files really change.

`python -m tests.faults --rounds N --seed S` kills builds and trainings at drawn moments, runs the same command again,
and compares the result with that of an uninterrupted one, bit by bit.
"""
