"""The data formats, one file each; `registry` says what such a file has."""
