"""Many nodes as one shard host: who conducts them, how requests find them, and how Ray places them."""
