"""What is wrong with the data of a configuration, for its detector."""
