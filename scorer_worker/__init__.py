"""The one process that owns the device: embedding store, batching, MaxSim."""
