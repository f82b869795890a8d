"""Lab hosts serve without a GPU, and get Ollama's image from a local archive: a double, see tests/doubles/ollama."""

from gpurack.lab.ollama_double import archive

ollama = {
    "accelerator": "cpu",
    "image_archive": str(archive()),
}
