"""One user's memory, a shard of many, the commit, and the replay reservoir."""
