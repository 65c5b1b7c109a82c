"""The parts of WeightPruning."""
