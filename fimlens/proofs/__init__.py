"""State theorems about structures, decide them with SymPy on the functions that ship, and print the results."""
