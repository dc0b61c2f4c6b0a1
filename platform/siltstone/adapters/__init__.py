"""The only importers of infrastructure, one library per file."""
