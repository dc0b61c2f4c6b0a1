"""Where a version of the core may go, who may serve, and whose words are in it."""
