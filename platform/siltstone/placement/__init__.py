"""Which shard owns which partition: decided from what is heard of the shards, without asking anybody."""
