"""The parts of DataPruning."""
