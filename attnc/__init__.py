"""An attention compiler: a spec in, a torch operator out."""
