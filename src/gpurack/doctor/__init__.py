"""``gpurack doctor``: what is wrong with a GPU host, from the PCI bus to the model's answer, and what cures it."""
