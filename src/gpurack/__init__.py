"""gpurack: private LLM servers from bare GPU machines, with pyinfra."""
