"""What a virtual processor is to the program that runs on it."""
