"""The paper's four algorithms, one file each, in its order."""
