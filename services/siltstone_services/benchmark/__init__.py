"""The cases of `siltstone bench`: each checks what it is about to time, then times it."""
