"""The optimizer as data: its step traced once per class of parameters, its state bound late."""
