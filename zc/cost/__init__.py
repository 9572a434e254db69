"""What a program costs: operations, bytes, seconds and memory, before it runs."""
