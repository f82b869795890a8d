"""Production hosts. Change the names below to yours; `gpurack check inventories/prod` tells what they would be."""

# One entry a host: its name, and what is true for this host alone.
gpu = [
    ("gpu1.example.org", {}),
]
