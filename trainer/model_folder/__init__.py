"""Model folders: what their files say, and the weights they hold. No torch unless weights are loaded."""
