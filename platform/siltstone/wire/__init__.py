"""Values to protobuf and back: the only translator. What protobuf cannot hold, or we do not know, is InvalidInput."""
