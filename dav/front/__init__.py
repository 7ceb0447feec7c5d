"""The connection engine hosted by cheroot: strict parsing, deadlines, streaming bodies."""
