"""The programs built from Siltstone: the gateway, the command line, and the place where all parts are put together."""
