"""One file a statement: its mathematics for every (m, n) in the docstring, and steps that SymPy decides on the shipped code.

A derivation has SIZES, the (m, n) at which every entry is proved, and steps(m, n).
"""
