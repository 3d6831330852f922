"""The loop: train, evaluate, predict."""
