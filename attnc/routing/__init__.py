"""Routes at work: which pairs a program with routes leaves visible, on given tensors.

The reference and the operator share this: a choice is data like any other, and made once.
"""
