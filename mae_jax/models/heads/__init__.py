"""What is put on an encoder for a task."""
