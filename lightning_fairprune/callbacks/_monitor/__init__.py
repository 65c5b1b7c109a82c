"""The parts of RecallMonitor."""
