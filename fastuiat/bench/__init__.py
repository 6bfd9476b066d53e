"""Measurements: what a step, an operation or a loader costs on the machine at hand."""
