"""What the daemon tells about itself, and what it may be asked to do; the same of a stopped one from its folder."""
