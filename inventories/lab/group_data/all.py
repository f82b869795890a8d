"""Lab hosts serve without a GPU, and get Ollama's image from a local archive: a double, see tests/doubles/ollama.

A host that pretends to have a card (`gpurack lab up gpu1 --card 2684`) gets the driver, built for real. The container
toolkit comes from NVIDIA's repository only, which a lab is not expected to reach, and nothing in a lab could use it.
"""

from gpurack.lab.ollama_double import archive

images = {"archives": {"ollama": str(archive())}}

ollama = {"accelerator": "cpu"}

container_toolkit = {"enabled": False}
