"""Vector databases beside AnythingLLM: pgvector, Chroma, Milvus, Qdrant."""
