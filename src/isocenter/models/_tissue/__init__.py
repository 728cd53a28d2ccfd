"""Text prompts on CT: the parts of the model `tissue`."""
