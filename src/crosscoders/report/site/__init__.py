"""The static report as a folder of files: what it holds, how it is encoded, and writing it whole."""
