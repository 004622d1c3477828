"""The loss of a global batch: the batch as losses see it, InfoNCE, pair losses, masks and learned temperatures."""
