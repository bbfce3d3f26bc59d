"""Writers: how examples become rows of a format, and rows a file, shared by the data formats."""
