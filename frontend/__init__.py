"""HTTP in, ranked scores out: launcher, API servers and command line. CPU only."""
