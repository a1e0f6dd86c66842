"""The messages between API servers and services, and how they travel over ZeroMQ."""
