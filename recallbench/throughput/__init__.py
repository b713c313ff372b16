"""The speed of a model: prompts read and tokens generated a second, each beside the floor that its device sets."""
