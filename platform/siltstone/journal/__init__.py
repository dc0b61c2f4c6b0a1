"""What is let into the journal, where it belongs there, and how other people's data becomes interactions."""
