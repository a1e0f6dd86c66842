"""One file per kind of request: decode, ask, answer."""
