"""bulkscore: offline bulk scoring through models that are deployed as real-time services."""

__version__ = "0.1.0"
