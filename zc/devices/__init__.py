"""Device descriptions: the files that ship with zc, and how one is read, written and measured."""
