"""A collection of a store embedded anew with a model, into a new collection or a new vector of the same one."""
