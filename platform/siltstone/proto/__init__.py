"""Protobuf code generated from the .proto files; never edited."""
