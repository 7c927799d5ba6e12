"""What becomes of messages when workers are killed and servers go away."""
