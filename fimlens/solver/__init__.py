"""The nearest member of a structure: closed form, gap, numeric minimum and its certificate."""
