"""Token ids in, token embeddings out."""
