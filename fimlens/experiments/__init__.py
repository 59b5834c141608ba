"""Comparisons and ablations: many trainings under one rule."""
