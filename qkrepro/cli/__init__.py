"""The command `qkrepro`."""
